"""What was paid for once: JSON values on disk under the hash of what they answer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any


class Store:
    """A folder of values by key, a file each, so that a kill leaves whole values and processes can share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

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
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
        fresh.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
        fresh.replace(path)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key[2:]}.json"
