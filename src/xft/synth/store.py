"""What was paid for once: JSON values on disk under the hash of what they answer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xft.errors import RunError


class Store:
    """A folder of values by key, a file each, so that a kill leaves whole values and processes can share it.

    Raises:
        RunError: it can't be written; found before anything is paid for, or when the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()

    @staticmethod
    def key(**parts: Any) -> str:
        """Return the key of a question: the sha256 of its parts as JSON."""
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> Any:
        """Return a value, None where there is none or its file is damaged."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads(self._path(key).read_text(encoding="utf-8"))
        return None

    def put(self, key: str, value: Any) -> None:
        """Keep a value; one that is there already is replaced in one step."""
        path = self._path(key)
        fresh = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
            fresh.replace(path)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.folder}: the store of answers can't be written ({error.strerror}); make room, or give another "
                "folder with --store"
            ) from None

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key[2:]}.json"
