"""Read instruction pairs as users have them: JSONL, JSON or Parquet, in the usual column layouts.

Layouts, told apart by their keys: `instruction`/`response`, Alpaca (`instruction`, `input`, `output`), `messages`
(`role`, `content`), ShareGPT (`conversations` with `from`, `value`), or a column map. Of a conversation the first
exchange is read, a system turn put before the instruction. Keys that are not known go to `meta`. To add a layout, add a
function to `LAYOUTS`.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any, cast

from xft.data.example import Example
from xft.errors import DataError, MissingExtraError
from xft.fetch import HUB_NAME, fetch_snapshot
from xft.recipe import DataSource

RECORDS = {"curate": ("train.jsonl", "documents.jsonl"), "synth": ("pairs.jsonl",), "data": ("train.jsonl",)}
"""What the folders that xft makes call their records; rejects and counts lie beside them."""
SHOWN = 200
"""Characters of a record that are kept of one that was rejected."""
SHIPPED = "shipped:"
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
MAX_LINE = 16 << 20
"""Bytes of a line; a longer one is rejected without being held in memory."""
PIECE = 1 << 20
MAX_DEPTH = 100
"""Levels of lists and mappings in a record; libraries go through them by calls in calls."""
TOO_DEEP = "nested too deeply"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """A record that could not be read."""

    where: str
    """File and line or row."""
    reason: str
    record: str
    """Start of the record's text."""


class BadRecordError(ValueError):
    """Say why a record can't be read, and what stands there."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(reason)
        self.text = text[:SHOWN]


def resolve_files(source: DataSource) -> list[Path]:
    """Return the files of a source, fetching it when it is not local.

    Raises:
        DataError: no such file, or a folder without data files.
        FetchError: a hub name that can't be had.
    """
    path = _place(source)
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise DataError(f"{path}: unknown kind of file; xft reads {', '.join(SUFFIXES)}")
        return [path]
    if path.is_dir():
        beside = _beside(path)
        files = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES) and file not in beside)
        if files:
            return files
        raise DataError(f"{path}: no {', '.join(SUFFIXES)} file in this folder")
    raise DataError(
        f"{source.path}: no such file; give a file, a folder, a hub data set (owner/name) or shipped:python"
    )


def source_name(source: DataSource) -> str:
    """Return a source's name without what tells where it lies: of a file or folder the last part of its path."""
    elsewhere = source.path.startswith(SHIPPED) or not Path(source.path).exists()
    return source.path if elsewhere else os.path.basename(os.path.abspath(source.path))


def file_names(sources: Iterable[DataSource]) -> dict[Path, str]:
    """Return the files of sources in order, each with a name of its own that does not tell where it lies."""
    names: dict[Path, str] = {}
    alike = Counter[str]()
    for source in sources:
        place, name = _place(source), source_name(source)
        for path in resolve_files(source):
            if path not in names:
                own = name if path == place else f"{name}/{path.relative_to(place).as_posix()}"
                alike[own] += 1
                names[path] = own if alike[own] == 1 else f"{own} ({alike[own]})"
    return names


def _place(source: DataSource) -> Path:
    """Return the file or folder of a source, there or not, fetching it when it is not local."""
    if source.path.startswith(SHIPPED):
        return Path(str(resources.files("xft") / "data" / f"{source.path.removeprefix(SHIPPED)}.jsonl"))
    path = Path(source.path)
    if not path.exists() and HUB_NAME.match(source.path) and not source.path.endswith(SUFFIXES):
        return fetch_snapshot(source.path, kind="dataset", revision=source.revision)
    return path


def made_by(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder of records that xft made; empty where there is none, or another program's."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        return dict(manifest) if manifest["stage"] in RECORDS and isinstance(manifest["files"], dict) else {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def _beside(folder: Path) -> set[Path]:
    """Return what xft has put beside the records that it made."""
    manifest = made_by(folder)
    names = {*manifest["files"], "manifest.json"} - {*RECORDS[manifest["stage"]]} if manifest else set()
    return {folder / name for name in names}


def read_source(source: DataSource) -> Iterator[Example | Rejected]:
    """Yield every record of a source in order, the unreadable ones as `Rejected`.

    Raises:
        DataError: a file that can't be read at all.
    """
    for path in resolve_files(source):
        for where, record in read_records(path):
            if isinstance(record, BadRecordError):
                yield Rejected(where=where, reason=str(record), record=record.text)
                continue
            try:
                yield to_example(record, where, source.columns)
            except BadRecordError as error:
                yield Rejected(where=where, reason=str(error), record=str(record)[:SHOWN])


def read_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield where each record of a file stands and what it is, a `BadRecordError` for one that can't be read.

    Raises:
        DataError: a file that can't be read at all.
        MissingExtraError: Parquet, without the means to read it.
    """
    if path.name.endswith(".parquet"):
        yield from _parquet(path)
    elif path.name.endswith(".json"):
        yield from _json(path)
    else:
        yield from _jsonl(path)


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with open_lines(path) as handle:
            yield from records_of(handle, str(path))
    except (OSError, EOFError, zlib.error) as error:
        kind = "gzip file" if path.name.endswith(".gz") else "file"
        raise DataError(f"{path}: not a readable {kind} ({error}); fetch it again") from None


def open_lines(path: Path) -> IO[bytes]:
    """Open a file of lines, compressed or not."""
    return cast(IO[bytes], gzip.open(path, "rb")) if path.name.endswith(".gz") else path.open("rb")


def records_of(handle: IO[bytes], path: str, *, first: int = 1, left: int | None = None) -> Iterator[tuple[str, Any]]:
    """Yield the records of the next `left` bytes, or of all; `first` is the number of the first line."""
    for number, line in enumerate(bounded_lines(handle, left), start=first):
        if line is None:
            yield f"{path}:{number}", BadRecordError(f"line over {MAX_LINE >> 20} MB")
        elif line.strip():
            yield f"{path}:{number}", _parsed(line)


def bounded_lines(handle: IO[bytes], left: int | None = None) -> Iterator[bytes | None]:
    """Yield the lines of the next `left` bytes, None for one of more than MAX_LINE bytes."""
    while left is None or left > 0:
        line = handle.readline(MAX_LINE + 1)
        if not line:
            return
        read, whole = len(line), len(line) <= MAX_LINE or line.endswith(b"\n")
        piece = line
        while not whole and not piece.endswith(b"\n") and (piece := handle.readline(PIECE)):
            read += len(piece)
        yield line if whole else None
        if left is not None:
            left -= read


def _parsed(line: bytes) -> Any:
    try:
        return _shallow(json.loads(line))
    except UnicodeDecodeError as error:
        return BadRecordError(f"not UTF-8 ({error.reason} at byte {error.start})", ascii(line[:SHOWN]))
    except ValueError as error:
        return BadRecordError(f"not JSON ({error})", line[:SHOWN].decode("utf-8", "replace"))
    except RecursionError:
        return BadRecordError(TOO_DEEP, line[:SHOWN].decode("utf-8", "replace"))


def _shallow(record: Any) -> Any:
    """Return a record.

    Raises:
        RecursionError: it has more than MAX_DEPTH levels.
    """
    level = [record]
    for _ in range(MAX_DEPTH):
        parts = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [part for several in parts for part in several if isinstance(part, dict | list)]
        if not level:
            return record
    raise RecursionError


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        tree = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: not a readable file ({error})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); if it has one record a line, name it .jsonl") from None
    if not isinstance(tree, list):
        raise DataError(f"{path}: not a JSON array of records")
    for number, record in enumerate(tree):
        try:
            yield f"{path}[{number}]", _shallow(record)
        except RecursionError:
            yield f"{path}[{number}]", BadRecordError(TOO_DEEP)


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError(f"{path}: Parquet needs the training extra: pip install 'xft[train]'") from None
    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for record in _rows(batch):
                yield f"{path}[{number}]", record
                number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from None


def _rows(batch: Any) -> list[Any]:
    """Return a batch's records; one can hold bytes that are no text, or a date that Python does not know."""
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            return [BadRecordError(f"a value that can't be read ({error})")]
        return [record for row in range(batch.num_rows) for record in _rows(batch.slice(row, 1))]


def to_example(record: Any, where: str, columns: dict[Any, str]) -> Example:
    """Read one record.

    Raises:
        BadRecordError: no known layout, or an instruction or response that is missing, empty or not text.
    """
    if not isinstance(record, dict):
        array = "; a file that is one JSON array is named .json" if isinstance(record, list) else ""
        raise BadRecordError(f"not an object with named fields{array}")
    if columns:
        for field, column in columns.items():
            if column not in record:
                raise BadRecordError(f"no column {column!r} (mapped to {field}); it has: {', '.join(map(str, record))}")
            if record[column] is None and field != "input":
                raise BadRecordError(f"{field} (column {column!r}) is empty")
        renamed = {field: record[column] for field, column in columns.items()}
        record = {key: value for key, value in record.items() if key not in columns.values()} | renamed
    for keys, layout in LAYOUTS.items():
        if all(record.get(key) is not None for key in keys):
            instruction, response, used = layout(record)
            _require_text(instruction, "instruction")
            _require_text(response, "response")
            meta = {str(key): value for key, value in record.items() if key not in used}
            return Example(instruction=instruction, response=response, source=where, meta=meta)
    known = "; ".join(" + ".join(keys) for keys in LAYOUTS)
    found = ", ".join(map(str, record)) or "none"
    raise BadRecordError(
        f"no known layout in its keys ({found}); known: {known}; or name its columns, with --column instruction=NAME "
        "or columns: in a recipe"
    )


def _require_text(value: Any, field: str) -> None:
    if not isinstance(value, str):
        raise BadRecordError(f"{field} is not text but {type(value).__name__}")
    if not value.strip():
        raise BadRecordError(f"{field} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRecordError(f"{field} holds half of a character (a lone surrogate at {error.start})") from None


def _pair(record: dict[str, Any]) -> tuple[Any, Any, set[str]]:
    return _with_input(record), record["response"], {"instruction", "response", "input"}


def _alpaca(record: dict[str, Any]) -> tuple[Any, Any, set[str]]:
    return _with_input(record), record["output"], {"instruction", "input", "output"}


def _with_input(record: dict[str, Any]) -> Any:
    instruction, extra = record["instruction"], record.get("input")
    both = isinstance(instruction, str) and isinstance(extra, str) and extra.strip()
    return f"{instruction}\n\n{extra}" if both else instruction


def _messages(record: dict[str, Any]) -> tuple[Any, Any, set[str]]:
    return (*_first_exchange(record["messages"], "role", "content"), {"messages"})


def _sharegpt(record: dict[str, Any]) -> tuple[Any, Any, set[str]]:
    return (*_first_exchange(record["conversations"], "from", "value"), {"conversations"})


def _first_exchange(turns: Any, speaker: str, text: str) -> tuple[Any, Any]:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadRecordError("its conversation is not a list of turns")
    roles = {"human": "user", "gpt": "assistant"}
    said = [(roles.get(str(turn.get(speaker)), turn.get(speaker)), _words(turn.get(text))) for turn in turns]
    system = next((words for role, words in said if role == "system" and words), None)
    said = [turn for turn in said if turn[0] in ("user", "assistant")]
    if len(said) < 2 or said[0][0] != "user" or said[1][0] != "assistant":
        raise BadRecordError("its conversation does not begin with a user's turn and an assistant's answer")
    instruction = f"{system}\n\n{said[0][1]}" if system and isinstance(said[0][1], str) else said[0][1]
    return instruction, said[1][1]


def _words(content: Any) -> Any:
    """Join a content that is a list of text parts; anything else is returned as it is."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    return content


Layout = Callable[[dict[str, Any]], tuple[Any, Any, set[str]]]
LAYOUTS: dict[tuple[str, ...], Layout] = {
    ("instruction", "response"): _pair,
    ("instruction", "output"): _alpaca,
    ("messages",): _messages,
    ("conversations",): _sharegpt,
}
"""Keys that mark a layout, and the function that gives instruction, response and the keys it used."""
