"""A stage writes one folder: into `NAME.partial` first, renamed when whole, with a manifest that says what made it."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xft import __version__
from xft.errors import BusyError, RunError, XftError
from xft.memory import peak_memory, release_memory, reset_peak_memory

MANIFEST = "manifest.json"
BEGUN = "begun.json"
NOT_HASHED = {MANIFEST, "metrics.jsonl", "statistics.json"}  # they hold times, which differ between equal runs
WORTH_KEEPING = 60.0
"""Seconds of work that a stage which ends in an error leaves behind, whatever it wrote."""
POLL_SECONDS = 0.05
"""Between two tries to get a lock."""
MOST_SAID = 4
"""Differences that a message names."""
VERSIONED = ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy")


@dataclass
class Meter:
    """What a stage did, filled in by its work."""

    tokens: int | None = None
    """Trained or scored positions."""
    flops: float | None = None
    device: str | None = None
    dtype: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a folder should hold."""

    name: str
    config: dict[str, Any]
    """All settings that its content depends on."""
    inputs: dict[str, str]
    """Digest of each thing it reads."""
    work: Callable[[Path, Meter], None]
    """Fills the partial folder; called again on the same folder after an interruption.

    What it then goes on from, answers or resume points, lies in subfolders: an early error deletes a folder without.
    """
    seed: int | None = None

    @property
    def key(self) -> str:
        """Return the hash of settings and inputs that identifies the content."""
        tree = {"stage": self.name, "config": self.config, "inputs": self.inputs, "seed": self.seed}
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def run_stage(out: Path, stage: Stage) -> dict[str, Any]:
    """Make `out`, or find it made already; return its manifest.

    Raises:
        RunError: `out` holds something else, or another process is writing it.
    """
    manifest = read_manifest(out)
    if manifest and manifest["key"] == stage.key:
        return manifest
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        differs = f" ({_difference(manifest, stage)})" if manifest else ""
        raise RunError(f"{out}: holds something else{differs}; give another output folder or move this one away")
    partial = out.with_name(out.name + ".partial")
    begun_key = read_json(partial / BEGUN, {}).get("key", stage.key)
    if begun_key != stage.key:
        with locked(partial / ".lock"):
            set_aside(partial, begun_key)
    fresh = not partial.exists()
    with locked(partial / ".lock"):
        if (manifest := read_manifest(out)) and manifest["key"] == stage.key:  # another process has just made it
            shutil.rmtree(partial)
            return manifest
        begun = read_json(partial / BEGUN, {}) or {"key": stage.key, "started": _now(), "wall_seconds": 0.0}
        begun["wall_seconds"] += _untold_seconds(partial)
        write_json(partial / BEGUN, begun)
        meter = Meter()
        reset_peak_memory()
        clock = time.monotonic()
        try:
            stage.work(partial, meter)
        except XftError:
            early = time.monotonic() - clock < WORTH_KEEPING
            if fresh and early and not _anything_to_go_on_from(partial):
                shutil.rmtree(partial)
            raise
        finally:
            begun["wall_seconds"] += time.monotonic() - clock
            begun["peak_memory_bytes"] = max(begun.get("peak_memory_bytes", 0), peak_memory())
            if partial.exists():
                write_json(partial / BEGUN, begun)
            release_memory()
        files = {name: file_digest(partial / name) for name in _files(partial)}
        manifest = {
            "stage": stage.name, "key": stage.key, "config": stage.config, "inputs": stage.inputs, "seed": stage.seed,
            "digest": _combined(files), "files": files, "versions": versions(), "started": begun["started"],
            "finished": _now(), "wall_seconds": round(begun["wall_seconds"], 3),
            "peak_memory_bytes": begun["peak_memory_bytes"], "flops": meter.flops, "tokens": meter.tokens,
            "device": meter.device, "dtype": meter.dtype, **meter.extra,
        }  # fmt: skip
        write_json(partial / MANIFEST, manifest)
        (partial / BEGUN).unlink()
    (partial / ".lock").unlink(missing_ok=True)
    if out.exists():
        out.rmdir()
    partial.rename(out)
    return manifest


def _anything_to_go_on_from(partial: Path) -> bool:
    """Tell whether work has kept something; what is written beside the subfolders is written anew by each try."""
    return any(path.is_file() and path.stat().st_size for path in partial.glob("*/**/*"))


def _untold_seconds(partial: Path) -> float:
    """Return how long a try worked that was killed: until it last wrote a file, since it wrote when it began."""
    if not (partial / BEGUN).exists():
        return 0.0
    began = (partial / BEGUN).lstat().st_mtime  # one that ends by itself writes it last
    written = [path.lstat().st_mtime for path in partial.rglob("*") if path.name != ".lock"]
    return max(written) - began


def _difference(manifest: dict[str, Any], stage: Stage) -> str:
    """Say what a folder was made with that is not what is asked for now."""
    if manifest["stage"] != stage.name:
        return f"made by {manifest['stage']}"
    before = _leaves({part: manifest[part] for part in ("config", "inputs", "seed")})
    now = _leaves({"config": stage.config, "inputs": stage.inputs, "seed": stage.seed})
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    said = [
        f"other {key.removeprefix('inputs.')}"
        if key.startswith("inputs.")
        else f"{key.removeprefix('config.')} {before.get(key)!r} instead of {now.get(key)!r}"
        for key in changed
    ]
    return f"made with {', '.join(said[:MOST_SAID])}{' and more' if len(said) > MOST_SAID else ''}"


def _leaves(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path: tree}
    return {
        key: leaf for name, part in tree.items() for key, leaf in _leaves(part, f"{path}.{name}".lstrip(".")).items()
    }


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return a finished folder's manifest, None when there is none.

    Files that were lost count as unfinished, those that `drop_files` deleted do not.
    """
    manifest, before = read_json(folder / MANIFEST, None), None
    while manifest is not None and manifest != before:
        kept = manifest["files"].keys() - manifest.get("dropped", [])
        if all((folder / name).exists() for name in kept):
            return dict(manifest)
        before, manifest = manifest, read_json(folder / MANIFEST, None)  # another process may just have dropped them
    return None


def drop_files(folder: Path, pattern: str) -> None:
    """Delete a finished folder's files of this pattern (links to outside are left); its manifest then says so."""
    manifest = read_manifest(folder)
    names = [path.name for path in sorted(folder.glob(pattern)) if path.is_file() and not path.is_symlink()]
    if manifest is None or not names:
        return
    manifest["dropped"] = sorted({*manifest.get("dropped", []), *names})
    write_json(folder / MANIFEST, manifest)
    for name in names:
        (folder / name).unlink()


def set_aside(folder: Path, key: str) -> Path:
    """Rename a folder that is no longer wanted to `NAME.HASH`; nothing is deleted."""
    aside = aside_of(folder, key)
    number = 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}.{key[:8]}-{number}")
    folder.rename(aside)
    return aside


def aside_of(folder: Path, key: str) -> Path:
    """Return where `set_aside` puts a folder with this key."""
    return folder.with_name(f"{folder.name}.{key[:8]}")


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock file, alone or with all that share it; the lock goes with the process, so a kill leaves none behind.

    `wait` is for how many seconds to try.

    Raises:
        BusyError: another process holds it.
        RunError: its folder can't be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+")
    except OSError as error:
        raise RunError(f"{path.parent}: can't be written ({error.strerror}: {error.filename})") from None
    deadline = time.monotonic() + wait
    with handle:
        while True:
            try:
                fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS)
                    continue
                handle.seek(0)
                holder = f"process {number}" if (number := handle.read().strip()) else "another process"
                raise BusyError(f"{path.parent}: {holder} is writing here; wait for it, or stop it first") from None
        handle.truncate(0)
        if not shared:
            handle.write(str(os.getpid()))
            handle.flush()
        yield


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """Return one sha256 over the names and contents of a folder's files, logs and manifest excepted."""
    return _combined({name: file_digest(folder / name) for name in _files(folder)})


def _files(folder: Path) -> list[str]:
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if Path(name).name not in {BEGUN, ".lock", MANIFEST})


def _combined(files: dict[str, str]) -> str:
    kept = {name: digest for name, digest in files.items() if Path(name).name not in NOT_HASHED}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def read_json(path: Path, default: Any) -> Any:
    """Return a JSON file's content, `default` when the file is missing.

    Raises:
        RunError: the file is damaged.
    """
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}); move its folder away and run again") from None


def write_json(path: Path, tree: Any) -> None:
    """Write a JSON file in one step."""
    write_lines(path, [json.dumps(tree, indent=2)])


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file in one step, so that a kill or a power cut leaves the old or the new content."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as sink:
        sink.writelines(f"{line}\n" for line in lines)
        sink.flush()
        os.fsync(sink.fileno())
    fresh.replace(path)


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python, xft and the libraries that results depend on."""
    found = {"python": platform.python_version(), "xft": __version__}
    for name in VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
