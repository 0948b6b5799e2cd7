"""A hub cache as huggingface_hub lays it out, and a process that sees nothing else of the hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def cached_repository(cache: Path, folder: str, contents: dict[str, dict[str, str]]) -> None:
    """Lay out a hub cache: a snapshot per commit, the first one as `main`."""
    repository = cache / folder
    for commit, files in contents.items():
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for name, text in files.items():
            (snapshot / name).write_text(text)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(next(iter(contents)))


def offline(cache: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run a program that has this cache and no network."""
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
