"""Every layout and file format that users have gives the same pairs; what can't be read is named with its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from hub_cache import cached_repository, offline
from xft.data.example import Example
from xft.data.sources import Rejected, read_source, resolve_files, source_name
from xft.errors import DataError
from xft.recipe import DataSource

PAIR = {"instruction": "Add two numbers.", "response": "def add(a, b):\n    return a + b"}


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def read(path: Path, **columns: str) -> list[Example | Rejected]:
    return list(read_source(DataSource.model_validate({"path": str(path), "columns": columns})))


def only(path: Path, **columns: str) -> Example:
    (item,) = read(path, **columns)
    assert isinstance(item, Example), item
    return item


@pytest.mark.parametrize(
    ("record", "instruction", "response"),
    [
        (PAIR, PAIR["instruction"], PAIR["response"]),
        ({"instruction": "Sort.", "input": "[2, 1]", "output": "[1, 2]"}, "Sort.\n\n[2, 1]", "[1, 2]"),
        ({"instruction": "Sort.", "input": "", "output": "ok"}, "Sort.", "ok"),
        ({"instruction": "Sort.", "input": None, "output": "ok"}, "Sort.", "ok"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "q", "a"),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a"},
                    {"role": "user", "content": "more"},
                    {"role": "assistant", "content": "b"},
                ]
            },
            "Be brief.\n\nq",
            "a",
        ),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "q", "a"),
        (
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": "q"},
                    {"from": "gpt", "value": "a"},
                ]
            },
            "s\n\nq",
            "a",
        ),
    ],
)
def test_each_layout_gives_instruction_and_response(
    tmp_path: Path, record: dict[str, Any], instruction: str, response: str
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [record])
    example = only(path)
    assert (example.instruction, example.response, example.meta) == (instruction, response, {})
    assert example.source == f"{path}:1"


def test_a_column_map_renames_and_keeps_the_rest(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"problem": "p", "solution": "s", "context": "c", "lang": "python"}])
    example = only(path, instruction="problem", response="solution", input="context")
    assert (example.instruction, example.response, example.meta) == ("p\n\nc", "s", {"lang": "python"})


@pytest.mark.parametrize("layout", ["pair", "alpaca", "messages", "sharegpt"])
def test_unknown_keys_go_to_meta(tmp_path: Path, layout: str) -> None:
    record: dict[str, Any] = {
        "pair": PAIR,
        "alpaca": {"instruction": "i", "output": "o"},
        "messages": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    }[layout]
    extra = {"id": 7, "tags": ["x"], "nested": {"k": None}}
    assert only(write_lines(tmp_path / "a.jsonl", [{**record, **extra}])).meta == extra


def test_every_file_format_gives_the_same_pairs(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    records = [{**PAIR, "n": 1}, {"instruction": "Grüße", "response": "print('ü')", "n": 2}]
    write_lines(tmp_path / "a.jsonl", records)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "a.json").write_text(json.dumps(records), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")

    wanted = [(record["instruction"], record["response"], {"n": record["n"]}) for record in records]
    for suffix in (".jsonl", ".jsonl.gz", ".json", ".parquet"):
        path = tmp_path / f"a{suffix}"
        examples = read(path)
        assert all(isinstance(example, Example) for example in examples)
        assert [(e.instruction, e.response, e.meta) for e in examples if isinstance(e, Example)] == wanted
        places = [f"{path}:1", f"{path}:2"] if "jsonl" in suffix else [f"{path}[0]", f"{path}[1]"]
        assert [e.source for e in examples if isinstance(e, Example)] == places


def test_a_value_that_python_can_not_hold_leaves_one_record_out(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    broken = pyarrow.array([b"ask", b"\xff\xfe", b"once more"], pyarrow.binary()).cast(pyarrow.string(), safe=False)
    days = pyarrow.array([0, 0, 2**31 - 1], pyarrow.int32()).cast(pyarrow.date32())
    table = pyarrow.table({"instruction": broken, "response": ["a", "b", "c"], "day": days})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    first, *others = read(tmp_path / "a.parquet")
    assert isinstance(first, Example) and first.instruction == "ask"
    assert [other.where for other in others if isinstance(other, Rejected)] == [
        f"{tmp_path / 'a.parquet'}[1]", f"{tmp_path / 'a.parquet'}[2]",
    ]  # fmt: skip
    assert all(isinstance(each, Rejected) and each.reason.startswith("a value that can't be read") for each in others)


def test_a_folder_gives_its_files_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        write_lines(tmp_path / name, [{"instruction": name, "response": "x"}])
    (tmp_path / "notes.txt").write_text("no data")
    assert [e.instruction for e in read(tmp_path) if isinstance(e, Example)] == ["a.jsonl", "b.jsonl"]


def test_shipped_pairs_are_read_by_name() -> None:
    items = list(read_source(DataSource(path="shipped:python")))
    assert len(items) >= 300
    assert all(isinstance(item, Example) for item in items)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"instruction": "a"', "not JSON"),
        (b'"text"', "not an object with named fields"),
        (b'{"instruction": "a", "response": "\xff"}', "not UTF-8"),
        (b'{"question": "a", "answer": "b"}', "no known layout in its keys (question, answer); known: instruction + "),
        (b"{}", "no known layout in its keys (none)"),
        (b'{"instruction": "a", "response": ""}', "response is empty"),
        (b'{"instruction": "  ", "response": "b"}', "instruction is empty"),
        (b'{"instruction": "a", "response": null}', "no known layout"),
        (b'{"instruction": ["a"], "response": "b"}', "instruction is not text but list"),
        (b'{"instruction": "a", "response": 3}', "response is not text but int"),
        (b'{"instruction": "a \\ud83d b", "response": "c"}', "instruction holds half of a character"),
        (b'{"instruction": "a", "response": "\\udc00"}', "response holds half of a character"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1, 2]", "not an object with named fields; a file that is one JSON array is named .json"),
        (b'{"messages": "hello"}', "its conversation is not a list of turns"),
        (b'{"messages": [{"role": "user", "content": "q"}]}', "does not begin with a user's turn and an assistant's"),
        (
            b'{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}]}',
            "does not begin with a user's turn",
        ),
        (b'{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt"}]}', "response is not text but NoneType"),
    ],
)
def test_a_malformed_line_is_rejected_with_its_place_and_the_rest_is_read(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps(PAIR).encode()
    path.write_bytes(good + b"\n\n" + line + b"\n" + good + b"\n")
    before, bad, after = read(path)
    assert isinstance(before, Example)
    assert isinstance(after, Example)
    assert isinstance(bad, Rejected)
    assert bad.where == f"{path}:3"
    assert reason in bad.reason
    assert after.source == f"{path}:4"


def test_a_content_of_text_parts_is_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    picture = [{"type": "image_url", "image_url": {"url": "x"}}]
    turns = [
        [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}] for content in (parts, picture)
    ]
    good, bad = read(write_lines(tmp_path / "a.jsonl", [{"messages": each} for each in turns]))
    assert isinstance(good, Example)
    assert good.instruction == "one two"
    assert isinstance(bad, Rejected)
    assert bad.reason == "instruction is not text but list"


def test_a_mapped_column_without_a_value_is_named(tmp_path: Path) -> None:
    record = {"question": "q", "answer": None, "context": None}
    (bad,) = read(write_lines(tmp_path / "a.jsonl", [record]), instruction="question", response="answer")
    assert isinstance(bad, Rejected)
    assert bad.reason == "response (column 'answer') is empty"
    (good,) = read(
        write_lines(tmp_path / "b.jsonl", [record | {"answer": "a"}]),
        instruction="question", response="answer", input="context",
    )  # fmt: skip
    assert isinstance(good, Example)
    assert (good.instruction, good.response) == ("q", "a")


def test_a_mapped_column_that_is_missing_is_named(tmp_path: Path) -> None:
    (bad,) = read(write_lines(tmp_path / "a.jsonl", [PAIR]), instruction="prompt")
    assert isinstance(bad, Rejected)
    assert bad.reason == "no column 'prompt' (mapped to instruction); it has: instruction, response"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[{]", "not JSON .* name it .jsonl"),
        ("a.json", b"{}", "not a JSON array of records"),
        ("a.json", b"[\xff]", "not JSON"),
        ("a.parquet", b"PAR1", "not a readable Parquet file"),
        ("a.jsonl.gz", b"plain text", "not a readable gzip file"),
        ("a.csv", b"a,b", "unknown kind of file; xft reads .jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_at_all_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_truncated_gzip_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    lines = b"".join(json.dumps({**PAIR, "n": n}).encode() + b"\n" for n in range(2000))
    path.write_bytes(gzip.compress(lines)[:-40])
    with pytest.raises(DataError, match="not a readable gzip file"):
        read(path)


def test_a_missing_file_is_named_with_what_could_be_given() -> None:
    with pytest.raises(DataError, match=r"none/such/a.jsonl: no such file; give a file, a folder, a hub data set"):
        resolve_files(DataSource(path="none/such/a.jsonl"))
    with pytest.raises(DataError, match="shipped:cobol: no such file"):
        resolve_files(DataSource(path="shipped:cobol"))


@pytest.mark.parametrize(
    "manifest", ['[{"name": "app"}]', '{"stage": "build", "files": {}}', "[" * 100_000, "{", '{"stage": "curate"}']
)
def test_another_programs_manifest_hides_no_file(tmp_path: Path, manifest: str) -> None:
    for name in ("train.jsonl", "more.jsonl", "sub/x.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_lines(tmp_path / name, [PAIR])
    (tmp_path / "manifest.json").write_text(manifest)
    names = [path.name for path in resolve_files(DataSource(path=str(tmp_path)))]
    assert names == ["manifest.json", "more.jsonl", "x.jsonl", "train.jsonl"]


def test_a_folder_without_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.jsonl, .* file in this folder"):
        resolve_files(DataSource(path=str(tmp_path)))


NEW, OLD = "a" * 40, "b" * 40


def test_a_hub_data_set_comes_out_of_the_local_cache_at_the_pinned_revision(tmp_path: Path) -> None:
    lines = {
        commit: {"train.jsonl": json.dumps({"instruction": text, "response": "r"}) + "\n"}
        for commit, text in ((NEW, "newest"), (OLD, "pinned"))
    }
    cached_repository(tmp_path, "datasets--org--pairs", lines)
    done = offline(
        tmp_path,
        "from xft.data.sources import read_source\nfrom xft.recipe import DataSource\n"
        f"for revision in (None, {OLD!r}):\n"
        "    print(*[e.instruction for e in read_source(DataSource(path='org/pairs', revision=revision))])",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["newest", "pinned"]


def test_a_hub_model_comes_out_of_the_local_cache_at_the_pinned_revision(tmp_path: Path) -> None:
    cached_repository(
        tmp_path, "models--org--name", {NEW: {"config.json": '{"v": "new"}'}, OLD: {"config.json": '{"v": "old"}'}}
    )
    done = offline(
        tmp_path,
        "from xft.base import resolve_base\n"
        f"for name in ('org/name', 'org/name@{OLD}'):\n    print((resolve_base(name) / 'config.json').read_text())",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ['{"v": "new"}', '{"v": "old"}']


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ("from xft.base import resolve_base as get; name = 'org/absent'", "org/absent: "),
        ("from xft.base import resolve_base as get; name = 'org/absent@v2'", "org/absent@v2: "),
        (
            "from xft.data.sources import resolve_files; from xft.recipe import DataSource\n"
            "get = lambda name: resolve_files(DataSource(path=name)); name = 'org/no-pairs'",
            "org/no-pairs: ",
        ),
    ],
)
def test_a_hub_name_that_cannot_be_had_is_a_clear_error(tmp_path: Path, call: str, named: str) -> None:
    done = offline(
        tmp_path,
        f"from xft.errors import FetchError\n{call}\n"
        "try:\n    get(name)\nexcept FetchError as error:\n    print(error)",
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(named)
    assert "check the name and the network, or download it and give its folder" in line


def test_the_text_of_a_line_that_is_no_json_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'nonsense\n"\xff"\n')
    rejected = list(read_source(DataSource(path=str(path))))
    assert [each.record for each in rejected if isinstance(each, Rejected)] == ["nonsense\n", "b'\"\\xff\"\\n'"]


def test_a_source_s_name_does_not_tell_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "linked.jsonl").symlink_to(tmp_path / "blob")
    (tmp_path / "blob").touch()
    monkeypatch.chdir(tmp_path / "pairs")
    given = [".", "linked.jsonl", str(tmp_path / "pairs"), "shipped:python", "owner/name"]
    names = ["pairs", "linked.jsonl", "pairs", "shipped:python", "owner/name"]
    assert [source_name(DataSource(path=path)) for path in given] == names
