"""Reading in shards: every record once, whatever the cuts; bad input is named, never an exception."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest

from xft.curate import read
from xft.curate.config import CurateSource
from xft.curate.read import input_digests, parse_line, plan_shards, read_shard, record_line
from xft.data import sources
from xft.data.example import Example
from xft.data.sources import Rejected
from xft.errors import DataError


def all_of(path: Path, kind: str = "pairs", **source: object) -> list[Example | Rejected]:
    given = CurateSource(path=str(path), **source)  # type: ignore[arg-type]
    return [item for shard in plan_shards([given]) for item in read_shard(shard, given, kind)]


def nested(levels: int) -> list[object]:
    return [nested(levels - 1)] if levels else []


def line(number: int, size: int = 10) -> str:
    return json.dumps({"instruction": f"ask {number}", "response": "x" * size})


@pytest.mark.parametrize("ending", ["\n", ""])
@pytest.mark.parametrize("shard_bytes", [1, 50, 120, 400, 10_000])
def test_shards_cover_every_line_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_bytes: int, ending: str
) -> None:
    monkeypatch.setattr(read, "SHARD_BYTES", shard_bytes)
    monkeypatch.setattr(read, "PIECE", 64)
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(line(number, 7 * (number % 30)) for number in range(1, 60)) + ending)
    items = all_of(path)
    empty = {number for number in range(1, 60) if number % 30 == 0}
    assert [item.source for item in items if isinstance(item, Example)] == [
        f"{path}:{number}" for number in range(1, 60) if number not in empty
    ]
    assert [item.where for item in items if isinstance(item, Rejected)] == [
        f"{path}:{number}" for number in sorted(empty)
    ]
    shards = plan_shards([CurateSource(path=str(path))])
    assert shards == plan_shards([CurateSource(path=str(path))])
    assert sum(shard.size for shard in shards) == path.stat().st_size


def test_bad_lines_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_LINE", 1 << 20)
    path = tmp_path / "bad.jsonl"
    good = line(1).encode()
    rows = [
        (good, None),
        (b"not json", "not JSON"),
        (b'{"instruction": "caf\xe9", "response": "x"}', "not UTF-8"),
        (line(2, 2 << 20).encode(), "line over 1 MB"),
        (b"[" * 100_000, "nested too deeply"),
        (json.dumps({"instruction": "ask", "response": "x", "extra": nested(120)}).encode(), "nested too deeply"),
        (b'{"instruction": "ask", "response": ""}', "response is empty"),
        (b'{"instruction": "ask", "response": 5}', "response is not text but int"),
        (b'{"question": "ask"}', "no known layout in its keys"),
        (b"[1, 2]", "not an object with named fields"),
        (b"", None),
        (good, None),
    ]
    path.write_bytes(b"\n".join(row for row, _ in rows))
    items = all_of(path)
    assert [item.reason for item in items if isinstance(item, Rejected)] == [reason for _, reason in rows if reason]
    assert [item.source for item in items if isinstance(item, Example)] == [f"{path}:1", f"{path}:12"]
    assert all(len(item.record) <= 1000 for item in items if isinstance(item, Rejected))


def test_what_is_nested_as_deeply_as_is_allowed_is_read_and_written(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        json.dumps([{"instruction": "ask", "response": "x", "extra": nested(n)} for n in (90, 120)])
    )
    good, bad = all_of(tmp_path / "a.json")
    assert isinstance(good, Example) and parse_line(record_line(good)) == good
    assert isinstance(bad, Rejected) and bad.reason == "nested too deeply"


def test_numbers_that_json_has_not_are_left_out() -> None:
    meta = {"score": float("nan"), "parts": [1.5, float("inf")], "name": "NaN"}
    written = record_line(Example(instruction="ask", response="x", meta=meta))
    assert parse_line(written).meta == {"score": None, "parts": [1.5, None], "name": "NaN"}
    assert b": NaN" not in written


def test_line_too_long_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_LINE", 100)
    monkeypatch.setattr(sources, "PIECE", 30)
    data = b"a" * 100 + b"\n" + b"b" * 101 + b"\n" + b"c" * 1000
    assert list(sources.bounded_lines(io.BytesIO(data), None)) == [b"a" * 100 + b"\n", None, None]
    assert list(sources.bounded_lines(io.BytesIO(data), 101)) == [b"a" * 100 + b"\n"]


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    whole = gzip.compress("\n".join(line(number) for number in range(2000)).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no.json").write_text("{")
    (tmp_path / "no.parquet").write_text("PAR1")
    (tmp_path / "ok.jsonl").write_text(line(1))
    items = all_of(tmp_path)
    bad = {
        Path(item.where).name: item.reason
        for item in items
        if isinstance(item, Rejected) and ":" not in Path(item.where).name
    }
    assert bad == dict.fromkeys(("cut.jsonl.gz", "no.json", "no.parquet"), "unreadable file")
    read_before = [item for item in items if isinstance(item, Example) and "cut" in item.source]
    assert 0 < len(read_before) < 2000
    assert any(isinstance(item, Example) and "ok" in item.source for item in items)


def test_file_that_goes_away_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line(1))
    source = CurateSource(path=str(path))
    shards = plan_shards([source])
    path.unlink()
    assert [item.reason for item in read_shard(shards[0], source, "pairs") if isinstance(item, Rejected)] == [
        "unreadable file"
    ]
    assert input_digests(shards) == {str(path): "unreadable"}


def test_source_that_is_not_there_stops() -> None:
    with pytest.raises(DataError, match="no such file"):
        plan_shards([CurateSource(path="/nowhere/a.jsonl")])


def test_documents(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "one", "url": "u"}\n{"content": "two"}\n{"title": "three"}\n')
    one, two, three = all_of(path, "text", license="MIT")
    assert isinstance(one, Example) and isinstance(two, Example) and isinstance(three, Rejected)
    assert (one.instruction, one.response) == ("", "one")
    assert one.meta == {"url": "u", "license": "MIT"}
    assert two.response == "two"
    assert three.reason == "no text or content in it"


@pytest.mark.parametrize("kind", ["pairs", "text"])
def test_written_records_are_read_again_as_they_were(tmp_path: Path, kind: str) -> None:
    meta = {"license": "MIT", "n": 3, "kind": "text"}  # a word of the user's own, which says nothing here
    record = Example(instruction="" if kind == "text" else "ask", response="é\n", source="origin:7", meta=meta)
    assert parse_line(record_line(record)) == record
    (tmp_path / "a.jsonl").write_bytes(record_line(record))
    assert all_of(tmp_path / "a.jsonl", kind) == [record]


def test_source_fills_in_what_records_leave_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"instruction": "ask", "response": "x", "license": "MIT"}\n'
        '{"instruction": "ask", "response": "x", "language": ""}\n'
    )
    first, second = all_of(path, license="CC0", language="rust")
    assert isinstance(first, Example) and isinstance(second, Example)
    assert first.meta == {"license": "MIT", "language": "rust"}
    assert second.meta == {"license": "CC0", "language": "rust"}
