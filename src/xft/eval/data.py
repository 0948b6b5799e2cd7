"""Find and read a benchmark's rows: from the folder XFT_DATA, else from the hub."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xft.data.sources import BadRecordError, read_records
from xft.errors import DataError, FetchError, MissingExtraError
from xft.fetch import fetch_snapshot


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """All rows of a data set, and their hash: the same for JSON lines, packed or not, and Parquet."""

    rows: Sequence[dict[str, Any]]
    digest: str
    where: str
    """The first file, for messages."""


def find_data(benchmark: str, names: Sequence[str], *, hub: str, patterns: Sequence[str], remedy: str) -> list[Path]:
    """Return the first of the named files that the folder XFT_DATA has, else the files of the hub's copy.

    Raises:
        DataError: neither has them; says both ways to get them, and `remedy`.
    """
    folder = os.environ.get("XFT_DATA")
    for name in names if folder else ():
        if Path(str(folder), name).is_file():
            return [Path(str(folder), name)]
    try:
        snapshot = fetch_snapshot(hub, kind="dataset", patterns=patterns)
        for pattern in patterns:
            if found := sorted(snapshot.glob(pattern)):
                return found
        reason = f"it has no {' or '.join(patterns)}"
    except (FetchError, MissingExtraError) as error:
        reason = str(error).partition(": ")[2].partition("; ")[0] or str(error)
    looked = f"{folder} has no {names[0]}" if folder else f"no folder was named that has {names[0]}"
    raise DataError(
        f"{benchmark}: {looked}; set --data-dir or XFT_DATA to one that has it{remedy}, "
        f"or make the hub's {hub} reachable ({reason})"
    )


def read_rows(paths: Sequence[Path]) -> Rows:
    """Read all rows; read again only when a file has changed.

    Raises:
        DataError: a file is malformed or has no row.
    """
    stats = [path.stat() for path in paths]
    return _read(tuple(paths), tuple((stat.st_mtime_ns, stat.st_size) for stat in stats))


@functools.lru_cache(maxsize=8)
def _read(paths: tuple[Path, ...], _state: tuple[tuple[int, int], ...]) -> Rows:
    rows: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    for path in paths:
        for where, row in read_records(path):
            if isinstance(row, BadRecordError):
                raise DataError(f"{where}: {row}; fetch the file again")
            if not isinstance(row, dict):
                raise DataError(f"{where}: not an object; fetch the file again")
            rows.append(row)
            digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    if not rows:
        raise DataError(f"{paths[0]}: no problem in this file; fetch it again")
    return Rows(rows=rows, digest=digest.hexdigest(), where=str(paths[0]))
