"""Read sources in shards: pieces of files that are found again at every start, whatever the number of workers.

Nothing here fails for what stands in a file: a line that can't be read, a file that can't be opened, is a `Rejected`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xft.curate.config import CurateSource
from xft.data.example import Example
from xft.data.sources import (
    PIECE,
    SHOWN,
    BadRecordError,
    Rejected,
    open_lines,
    read_records,
    records_of,
    resolve_files,
    to_example,
)
from xft.errors import DataError

SHARD_BYTES = 1 << 20
MAX_SHARDS = 4096
"""About so many shards at most; those of larger inputs are larger."""
EXAMPLE_KEYS = {"instruction", "response", "source", "meta"}
TEXT_KEYS = ("text", "content")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """Lines of a JSONL file, or a whole file of another kind."""

    number: int
    source: int
    """Index in the recipe's sources."""
    path: str
    start: int = 0
    """First byte."""
    end: int | None = None
    """Byte after the last one; None: to the end."""
    line: int = 1
    """Number of the first line."""

    @property
    def size(self) -> int:
        """Return about how many bytes it has, for the progress."""
        try:
            return (self.end or Path(self.path).stat().st_size) - self.start
        except OSError:
            return 0


def plan_shards(sources: Sequence[CurateSource]) -> list[Shard]:
    """Cut the sources into shards.

    Raises:
        DataError: a source that is not there.
        FetchError: a hub name that can't be had.
    """
    files = [(number, path) for number, source in enumerate(sources) for path in resolve_files(source)]
    total = sum(Shard(number=0, source=0, path=str(path)).size for _, path in files)
    target = max(SHARD_BYTES, total // MAX_SHARDS)
    shards: list[Shard] = []
    for source, path in files:
        for start, end, line in _cuts(path, target):
            shards.append(Shard(number=len(shards), source=source, path=str(path), start=start, end=end, line=line))
    return shards


def _cuts(path: Path, target: int) -> Iterator[tuple[int, int | None, int]]:
    """Yield start, end and first line of each shard of a file."""
    if not path.name.endswith(".jsonl"):
        yield 0, None, 1
        return
    start, at, line, first = 0, 0, 1, 1
    try:
        with path.open("rb") as handle:
            while piece := handle.read(PIECE):
                cut = piece.find(b"\n", max(0, start + target - at)) if at + len(piece) - start >= target else -1
                if cut >= 0:
                    line += piece.count(b"\n", 0, cut + 1)
                    yield start, at + cut + 1, first
                    start, first = at + cut + 1, line
                    line += piece.count(b"\n", cut + 1)
                else:
                    line += piece.count(b"\n")
                at += len(piece)
    except OSError:
        yield 0, None, 1  # reading it will say why
        return
    if at > start or at == 0:
        yield start, at, first


def input_digests(shards: Sequence[Shard]) -> dict[str, str]:
    """Return the sha256 of every file, `unreadable` for one that can't be opened."""
    found: dict[str, str] = {}
    for shard in shards:
        if shard.path not in found:
            try:
                with open(shard.path, "rb") as handle:
                    found[shard.path] = hashlib.file_digest(handle, "sha256").hexdigest()
            except OSError:
                found[shard.path] = "unreadable"
    return found


def read_shard(shard: Shard, source: CurateSource, kind: str) -> Iterator[Example | Rejected]:
    """Yield the records of a shard in order; what can't be read as `Rejected`.

    Raises:
        MissingExtraError: Parquet, without the means to read it.
    """
    try:
        for where, record in _records(shard):
            if isinstance(record, BadRecordError):
                yield Rejected(where=where, reason=_short(str(record)), record=record.text)
                continue
            try:
                yield read_record(record, where, source, kind)
            except BadRecordError as error:
                yield Rejected(where=where, reason=_short(str(error)), record=ascii(record)[:SHOWN])
    except (DataError, OSError, EOFError, zlib.error) as error:
        yield Rejected(where=shard.path, reason="unreadable file", record=str(error)[: 2 * SHOWN])


def _short(reason: str) -> str:
    """Return what is common to all such faults, since reasons are counted."""
    return re.split(r" \(|; ", reason, maxsplit=1)[0]


def _records(shard: Shard) -> Iterator[tuple[str, Any]]:
    if not shard.path.endswith((".jsonl", ".jsonl.gz")):
        yield from read_records(Path(shard.path))
        return
    with open_lines(Path(shard.path)) as handle:
        if shard.start:
            handle.seek(shard.start)
        left = None if shard.end is None else shard.end - shard.start
        yield from records_of(handle, shard.path, first=shard.line, left=left)


def read_record(record: Any, where: str, source: CurateSource, kind: str) -> Example:
    """Read one record; what the source says of all its records fills what a record leaves out."""
    if kind == "text":
        example = _document(record, where)
    elif isinstance(record, dict) and set(record) == EXAMPLE_KEYS and isinstance(record["meta"], dict):
        own = to_example({key: record[key] for key in ("instruction", "response")}, where, {})
        came = record["source"] if isinstance(record["source"], str) and record["source"] else where
        example = Example(instruction=own.instruction, response=own.response, source=came, meta=record["meta"])
    else:
        example = to_example(record, where, source.columns)
    given = {"license": source.license, "language": source.language}
    extra = {key: value for key, value in given.items() if value and not example.meta.get(key)}
    if not extra:
        return example
    return Example(
        instruction=example.instruction, response=example.response, source=example.source, meta=example.meta | extra
    )


def _document(record: Any, where: str) -> Example:
    """Read a raw document: no instruction, the text as the response."""
    if not isinstance(record, dict):
        raise BadRecordError("not an object with named fields")
    key = next((key for key in TEXT_KEYS if isinstance(record.get(key), str)), None)
    if key is None:
        raise BadRecordError(f"no {' or '.join(TEXT_KEYS)} in it")
    if set(record) == {"text", "source", "meta"} and isinstance(record["meta"], dict):
        came = record["source"] if isinstance(record["source"], str) and record["source"] else where
        return Example(instruction="", response=record["text"], source=came, meta=record["meta"])
    meta = {str(name): value for name, value in record.items() if name != key}
    return Example(instruction="", response=record[key], source=where, meta=meta)


def record_line(example: Example) -> bytes:
    """Return a record as a line of JSON: `text`, or instruction and response; `source`, `meta`.

    Raises:
        ValueError: a field holds what no file of UTF-8 JSON can, such as half a surrogate pair.
        RecursionError: a field is nested too deeply.
    """
    if example.is_document:
        fields: dict[str, Any] = {"text": example.response}
    else:
        fields = {"instruction": example.instruction, "response": example.response}
    fields |= {"source": example.source, "meta": example.meta}
    try:
        line = json.dumps(fields, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:  # NaN or infinity, which tables have for what is missing, and JSON has not
        line = json.dumps(fields | {"meta": _finite(example.meta)}, ensure_ascii=False, default=str)
    return line.encode() + b"\n"


def _finite(value: Any) -> Any:
    """Return a value with None for each number that is not finite."""
    match value:
        case dict():
            return {key: _finite(part) for key, part in value.items()}
        case list():
            return [_finite(part) for part in value]
        case float():
            return value if math.isfinite(value) else None
        case _:
            return value


def parse_line(line: bytes) -> Example:
    """Read a line that `record_line` made."""
    fields = json.loads(line)
    if "text" in fields:
        return Example(instruction="", response=fields["text"], source=fields["source"], meta=fields["meta"])
    return Example(**fields)
