"""The stage `data`: what is rejected, what is held out, what is trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xft.data.example import Example
from xft.data.prepare import prepare, read_pairs, sources_digest, split, write_pairs
from xft.errors import DataError
from xft.recipe import DataConfig


def config(*paths: Path, **options: Any) -> DataConfig:
    return DataConfig.model_validate({"sources": [str(path) for path in paths], **options})


def pairs(path: Path, number: int, start: int = 0) -> Path:
    lines = [{"instruction": f"i{n}", "response": f"r{n}", "n": n} for n in range(start, start + number)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def examples(number: int, repeat: int = 1) -> list[Example]:
    return [Example(instruction=f"i{n}", response=f"r{n}.{k}") for n in range(number) for k in range(repeat)]


def test_prepared_pairs_hold_everything_that_was_read(tmp_path: Path) -> None:
    first, second = pairs(tmp_path / "a.jsonl", 8), pairs(tmp_path / "b.jsonl", 4, start=8)
    out = tmp_path / "out"
    out.mkdir()
    prepare(config(first, second, heldout=3), out, seed=1)
    train, heldout = list(read_pairs(out / "train.jsonl")), list(read_pairs(out / "heldout.jsonl"))
    assert len(heldout) == 3
    assert sorted(e.meta["n"] for e in train + heldout) == list(range(12))
    assert all(e.response == f"r{e.meta['n']}" for e in train + heldout)
    summary = json.loads((out / "summary.json").read_text())
    assert summary == {
        "train": 9,
        "heldout": 3,
        "rejected": 0,
        "too_long": 0,
        "sources": [{"path": "a.jsonl", "records": 8}, {"path": "b.jsonl", "records": 4}],
    }
    assert not (out / "rejects.jsonl").exists()


def curated(folder: Path, steps: Any, **manifest: Any) -> Path:
    """Write a folder as `xft curate` leaves it."""
    folder.mkdir()
    pairs(folder / "train.jsonl", 8)
    (folder / "rejects.jsonl").write_text('{"step": "parse"}\n')
    (folder / "statistics.json").write_text(json.dumps({"steps": steps}))
    files = dict.fromkeys(("train.jsonl", "rejects.jsonl", "statistics.json"), "sha256")
    (folder / "manifest.json").write_text(json.dumps({"stage": "curate", "files": files} | manifest))
    return folder


def sources_of(source: Path, out: Path) -> Any:
    out.mkdir()
    prepare(config(source, heldout=3), out, seed=1)
    return json.loads((out / "summary.json").read_text())["sources"]


def test_what_curation_left_out_is_in_the_summary_of_a_run_on_it(tmp_path: Path) -> None:
    steps = [{"step": "parse", "in": 11, "dropped": 3, "reasons": {"does not parse": 3}}]
    folder = curated(tmp_path / "curated", steps)
    for number, source in enumerate((folder, folder / "train.jsonl")):
        (told,) = sources_of(source, tmp_path / str(number))
        assert told == {"path": source.name, "records": 8, "curated": steps}
    mine = pairs(folder / "mine.jsonl", 4, start=20)  # a user's own, put beside
    assert sources_of(mine, tmp_path / "mine") == [{"path": "mine.jsonl", "records": 4}]
    assert sources_of(folder, tmp_path / "all") == [{"path": "curated", "records": 12}]


@pytest.mark.parametrize("steps", ["none", [{"a": 1}], 3, None, [{"step": "s", "in": 1, "dropped": 0, "reasons": 3}]])
def test_statistics_that_are_no_statistics_are_left_alone(tmp_path: Path, steps: Any) -> None:
    folder = curated(tmp_path / "curated", steps)
    assert sources_of(folder, tmp_path / "out") == [{"path": "curated", "records": 8}]


def test_pairs_that_are_too_long_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [{"instruction": "i" * n, "response": "r" * n} for n in range(1, 11)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepare(config(path, heldout=2, max_chars=12), tmp_path, seed=1)
    kept = [len(e.instruction) for name in ("train", "heldout") for e in read_pairs(tmp_path / f"{name}.jsonl")]
    assert sorted(kept) == [1, 2, 3, 4, 5, 6]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["too_long"], summary["sources"][0]["records"]) == (4, 10)
    assert len(list(read_pairs(write_pairs(config(path, max_chars=8), tmp_path)))) == 4
    with pytest.raises(DataError, match=r"none of 10 pairs has at most 1 characters; raise data\.max_chars"):
        prepare(config(path, max_chars=1), tmp_path, seed=1)


def test_the_split_depends_on_the_seed_alone() -> None:
    wanted = config(Path("x"), heldout=5)
    first = split(examples(30), wanted, seed=3)
    assert split(examples(30), wanted, seed=3) == first
    assert split(examples(30), wanted, seed=4) != first


@pytest.mark.parametrize("seed", range(5))
def test_no_instruction_is_both_trained_on_and_held_out(seed: int) -> None:
    train, heldout = split(examples(12, repeat=3), config(Path("x"), heldout=4), seed)
    assert {e.instruction for e in train}.isdisjoint(e.instruction for e in heldout)
    assert len(train) + len(heldout) == 36
    assert len(heldout) >= 4
    assert len({(e.instruction, e.response) for e in train + heldout}) == 36


def test_train_takes_that_many_of_the_same_order() -> None:
    whole, heldout = split(examples(30), config(Path("x"), heldout=5), seed=3)
    some, same = split(examples(30), config(Path("x"), heldout=5, train=7), seed=3)
    assert some == whole[:7]
    assert same == heldout


@pytest.mark.parametrize(("heldout", "train"), [(10, None), (5, 6)])
def test_too_few_pairs_are_counted_and_the_remedy_named(heldout: int, train: int | None) -> None:
    with pytest.raises(DataError, match=r"10 instruction pairs: too few .* lower data.heldout or data.train"):
        split(examples(10), config(Path("x"), heldout=heldout, train=train), seed=0)


def test_a_malformed_record_stops_with_file_line_and_count(tmp_path: Path) -> None:
    path = pairs(tmp_path / "a.jsonl", 2)
    with path.open("a") as sink:
        sink.write('{"instruction": "x"\n{"instruction": "y", "response": ""}\n')
    with pytest.raises(DataError, match=r"not JSON .*\(and 1 more\); mend it, or use --skip-bad") as caught:
        write_pairs(config(path), tmp_path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert not (tmp_path / "train.jsonl").exists()


def test_skip_bad_writes_rejects_with_reasons_and_counts_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pairs(tmp_path / "a.jsonl", 6)
    with path.open("ab") as sink:
        sink.write(b'{"instruction": "x"\n{"instruction": "y", "response": ""}\n{"q": "\xc3\xa4"}\n\xff\n')
    out = tmp_path / "out"
    out.mkdir()
    prepare(config(path, heldout=2, skip_bad=True), out, seed=0)
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [reject["where"] for reject in rejects] == [f"a.jsonl:{line}" for line in (7, 8, 9, 10)]
    for reject, reason in zip(rejects, ("not JSON", "response is empty", "no known layout", "not UTF-8"), strict=True):
        assert reason in reject["reason"]
    assert "ä" in rejects[2]["record"]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["train"], summary["heldout"], summary["rejected"]) == (4, 2, 4)

    write_pairs(config(path, skip_bad=True), out)
    assert len(list(read_pairs(out / "train.jsonl"))) == 6
    assert "4 malformed records left out, listed in rejects.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"empty\.jsonl: no instruction pairs in it"):
        write_pairs(config(path), tmp_path)


def test_nothing_but_rejects_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("nonsense\n")
    with pytest.raises(DataError, match=r"bad\.jsonl: no instruction pairs in it"):
        write_pairs(config(path, skip_bad=True), tmp_path)


def test_the_sources_digest_changes_with_one_byte(tmp_path: Path) -> None:
    path = pairs(tmp_path / "a.jsonl", 3)
    before = sources_digest(config(path))
    assert sources_digest(config(path)) == before
    path.write_text(path.read_text().replace("r1", "r9"))
    after = sources_digest(config(path))
    assert set(after) == set(before) == {"a.jsonl"}
    assert after != before


def test_the_same_files_elsewhere_are_the_same_data(tmp_path: Path) -> None:
    made = []
    for name in ("here", "there"):
        place = tmp_path / name
        (place / "more").mkdir(parents=True)
        more = pairs(place / "more" / "b.jsonl", 4, start=6)
        more.write_text(more.read_text() + "{}\n")
        given = config(pairs(place / "a.jsonl", 6), place / "more", heldout=2, skip_bad=True)
        out = place / "out"
        out.mkdir()
        prepare(given, out, seed=1)
        made.append((sources_digest(given), {path.name: path.read_text() for path in out.iterdir()}))
    assert made[0] == made[1]
    read = read_pairs(tmp_path / "here" / "out" / "train.jsonl")
    assert {example.source.rpartition(":")[0] for example in read} == {"a.jsonl", "more/b.jsonl"}


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for number, folder in enumerate("xyz"):
        (tmp_path / folder).mkdir()
        pairs(tmp_path / folder / "a.jsonl", 4, start=4 * number)
    given = config(*(tmp_path / folder / "a.jsonl" for folder in "xyz"), heldout=2)
    assert list(sources_digest(given)) == ["a.jsonl", "a.jsonl (2)", "a.jsonl (3)"]
    prepare(given, tmp_path, seed=1)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [source["records"] for source in summary["sources"]] == [4, 4, 4]


def test_shipped_pairs_are_named_as_the_recipe_names_them() -> None:
    assert list(sources_digest(config(Path("shipped:python")))) == ["shipped:python"]
