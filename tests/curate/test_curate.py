"""The whole command: same bytes for any number of workers, after any kill; every record accounted for."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xft.cli import main
from xft.curate import assemble, card, dedup, read, run
from xft.curate.config import CurateConfig, parse_curate
from xft.curate.run import CurateJob, curate
from xft.data.example import Example
from xft.data.sources import read_source
from xft.errors import DataError, RunError
from xft.recipe import DataSource
from xft.stage import file_digest, folder_digest

pytest.importorskip("rensa")
pytest.importorskip("tree_sitter")

FILES = ("train.jsonl", "rejects.jsonl", "contamination.jsonl", "statistics.json", "README.md")


def write_sources(folder: Path, count: int = 300, seed: int = 0) -> Path:
    """Pairs of which some are bad in each way."""
    chance = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[bytes] = []
    for number in range(count):
        names = ["".join(chance.choices("abcdefgh", k=9)) for _ in range(40)]
        code = "\n".join(f"{name} = {chance.randrange(1000)}" for name in names)
        row: dict[str, Any] = {
            "instruction": f"Assign the variables of case {number}.",
            "response": f"```python\n{code}\n```",
        }
        row["license"] = chance.choice(["MIT", "CC0"])
        match number % 20:
            case 3:
                row["response"] = ""
            case 5:
                row["response"] = "```python\nvalue = (\n```\nMail jane.doe@gmail.com"
            case 7:
                row["response"] += "\nMail jane.doe@gmail.com"
            case 9:
                row = json.loads(lines[-9])  # an exact duplicate
            case 11:
                row = json.loads(lines[-11])
                row["instruction"] += " Please do."
            case 13:
                lines.append(b"\xff not json")
                continue
        lines.append(json.dumps(row).encode())
    (folder / "a.jsonl").write_bytes(b"\n".join(lines[: count // 2]) + b"\n")
    (folder / "b.jsonl").write_bytes(b"\n".join(lines[count // 2 :]) + b"\n")
    (folder / "c.json").write_text("{")
    return folder


def config_of(folder: Path, **more: Any) -> CurateConfig:
    return parse_curate({"sources": [{"path": str(folder), "name": "made up"}], **more}, "test")


def made(folder: Path, out: Path, workers: int = 1, **more: Any) -> Path:
    out.mkdir()
    curate(CurateJob(config=config_of(folder, **more), out=out, seed=1, workers=workers))
    return out


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "SHARD_BYTES", 20_000)


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XFT_DATA", raising=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The made-up sources, and what becomes of them in one go; tests must not write to either."""
    folder = write_sources(tmp_path_factory.mktemp("whole") / "in")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "SHARD_BYTES", 20_000)
        patch.delenv("XFT_DATA", raising=False)
        return folder, made(folder, folder.parent / "out")


def test_every_record_is_accounted_for(whole: tuple[Path, Path]) -> None:
    _, out = whole
    kept = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    statistics = json.loads((out / "statistics.json").read_text())
    assert len(kept) + len(rejects) == statistics["read"] == 301
    assert len(kept) == statistics["kept"] == statistics["written"]["records"] == 210
    counted = {step["step"]: step["dropped"] for step in statistics["steps"] if step["dropped"]}
    assert counted == Counter(reject["step"] for reject in rejects)
    assert counted == {"read": 31, "parse": 15, "personal": 15, "exact-duplicate": 15, "near-duplicate": 15}
    assert [path.rsplit("/", 1)[1] for path in statistics["unreadable_files"]] == ["c.json"]
    assert all("record" not in reject for reject in rejects if reject["step"] == "personal")
    assert "jane.doe" not in (out / "rejects.jsonl").read_text()
    sources = {record["source"] for record in kept}
    assert all(reject["of"] in sources for reject in rejects if "of" in reject)
    assert statistics["sources"]["made up"]["licenses"].keys() == {"MIT", "CC0"}
    assert not (out / "work").exists()
    card = (out / "README.md").read_text()
    assert "210 records" in card and file_digest(out / "train.jsonl") in card and "made up" in card


def test_output_can_be_tuned_on_and_curated_again(tmp_path: Path, whole: tuple[Path, Path]) -> None:
    _, out = whole
    pairs = list(read_source(DataSource(path=str(out / "train.jsonl"))))
    assert len(pairs) == 210
    again = made(out / "train.jsonl", tmp_path / "again")
    assert (again / "train.jsonl").read_bytes() == (out / "train.jsonl").read_bytes()


def test_workers_do_not_matter(tmp_path: Path, small_shards: None, whole: tuple[Path, Path]) -> None:
    folder, one = whole
    two = made(folder, tmp_path / "two", 2)
    for name in FILES:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_shards_change_nothing_but_the_order_of_work(tmp_path: Path, whole: tuple[Path, Path]) -> None:
    folder, out = whole  # shards of 20,000 bytes there, one a file here
    large = made(folder, tmp_path / "large")
    assert (out / "train.jsonl").read_bytes() == (large / "train.jsonl").read_bytes()


def test_mix_and_budget(tmp_path: Path) -> None:
    write_sources(tmp_path / "a", 200, 1)
    write_sources(tmp_path / "b", 100, 2)
    sources = [{"path": str(tmp_path / name), "name": name, "weight": 1} for name in "ab"]
    mix = {"weighted": True, "repeats": 2, "shuffle": True}
    (tmp_path / "out").mkdir()
    config = parse_curate({"sources": sources, "mix": mix}, "test")
    statistics = curate(CurateJob(config=config, out=tmp_path / "out", seed=1, workers=1))
    tokens = [statistics["written"]["sources"][name]["tokens"] for name in "ab"]
    assert abs(tokens[0] - tokens[1]) < 0.02 * tokens[0]
    lines = (tmp_path / "out" / "train.jsonl").read_bytes().splitlines()
    assert len(lines) == statistics["written"]["records"]
    assert set(Counter(lines).values()) <= {1, 2}


def test_the_text_of_what_can_not_be_read_is_not_listed_where_private_data_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": "\\nghp_aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3zA5"\n{"b": 1}\n')
    write_sources(tmp_path / "b", 40)
    rows = (tmp_path / "b" / "a.jsonl").read_bytes()
    (tmp_path / "c.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes() + rows)
    out = made(tmp_path / "c.jsonl", tmp_path / "out")
    assert "ghp_" not in (out / "rejects.jsonl").read_text()
    unread = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert [each["source"][-2:] for each in unread if each["step"] == "read"][:2] == [":1", ":2"]
    shown = made(tmp_path / "c.jsonl", tmp_path / "shown", steps=["schema"])
    assert "ghp_" in (shown / "rejects.jsonl").read_text()


@pytest.mark.parametrize(("mix", "most"), [({}, 1), ({"shuffle": True}, 50), ({"weighted": True, "repeats": 2}, 120)])
def test_what_is_held_for_the_mix_is_some_bytes_a_record(mix: dict[str, Any], most: int, tmp_path: Path) -> None:
    config, records = parse_curate({"sources": ["in"], "mix": mix}, "test"), 100_000
    job = CurateJob(config=config, out=tmp_path, seed=0, workers=1)
    job.work.mkdir()
    record = Example(instruction="one", response="two")
    tracemalloc.start()
    try:
        with assemble._Pool(job) as pool:
            for _ in range(records):
                pool.add(b"{}\n", record, 0)
        pool.write(assemble._Tally(job, []))
        assert tracemalloc.get_traced_memory()[1] < most * records + 1_000_000  # buffers, and what the first draw loads
    finally:
        tracemalloc.stop()


def test_what_a_mix_has_no_place_for_is_a_reject(tmp_path: Path) -> None:
    write_sources(tmp_path / "a", 200, 1)
    (tmp_path / "out").mkdir()
    config = parse_curate({"sources": [str(tmp_path / "a")], "mix": {"tokens": 500}}, "test")
    statistics = curate(CurateJob(config=config, out=tmp_path / "out", seed=1, workers=1))
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_bytes().splitlines()]
    left = [reject["record"]["instruction"] for reject in rejects if reject["step"] == "mix"]
    written = [json.loads(line)["instruction"] for line in (tmp_path / "out" / "train.jsonl").read_bytes().splitlines()]
    assert len(left) > len(written) > 0 and not set(left) & set(written)
    assert len(written) + len(rejects) == statistics["read"]
    assert statistics["steps"][-1] == {
        "step": "mix", "in": statistics["kept"], "dropped": len(left), "reasons": {"no place in the mix": len(left)}
    }  # fmt: skip


def test_nothing_left_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": "Say hello.", "response": ""}\n' * 3)
    with pytest.raises(DataError, match=r"none of 3 records is kept: read: response is empty \(3\)"):
        made(tmp_path / "a.jsonl", tmp_path / "out")


def test_documents(tmp_path: Path) -> None:
    prose = " ".join(
        f"{word} and the river that they have seen near town {word}." for word in ["one", "two", "three", "four"]
    )
    prose += " Every morning people walk to the market, buy bread, and talk of the weather with whoever stands there."
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": prose, "url": "u"}) + '\n{"text": "too short"}\n')
    (tmp_path / "out").mkdir()
    config = config_of(tmp_path / "a.jsonl", kind="text", steps=["schema", "words"])
    statistics = curate(CurateJob(config=config, out=tmp_path / "out", seed=1, workers=1))
    assert statistics["kept"] == 1
    (line,) = (tmp_path / "out" / "documents.jsonl").read_text().splitlines()
    assert json.loads(line)["text"] == prose


# --- interruptions ----------------------------------------------------------------------------------------------------


def kill(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killing(work: Callable[..., Any], call: int = 3) -> Callable[..., Any]:
    """Do the work, but die instead of the n-th time."""
    calls = itertools.count(1)
    return lambda *arguments, **options: kill() if next(calls) == call else work(*arguments, **options)


PLACES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "filter": lambda patch: patch.setattr(run, "_judge", killing(run._judge, 120)),
    "signatures": lambda patch: patch.setattr(run._Signer, "_flush", killing(run._Signer._flush)),
    "shard": lambda patch: patch.setattr(run, "write_json", killing(run.write_json)),
    "index": lambda patch: patch.setattr(dedup.Index, "add", killing(dedup.Index.add)),
    "clusters": lambda patch: patch.setattr(dedup.Index, "_join", kill),
    "benchmarks": lambda patch: patch.setattr(run, "compare_shard", killing(run.compare_shard)),
    "output": lambda patch: patch.setattr(assemble, "_rest_of", killing(assemble._rest_of)),
    "card": lambda patch: patch.setattr(card, "data_card", kill),
    "cleaning": lambda patch: patch.setattr(run.shutil, "rmtree", killing(run.shutil.rmtree, 2)),
}


def same_after_a_kill(config: CurateConfig, expected: Path, out: Path, strike: Callable[[], None]) -> None:
    """Curate until what `strike` has laid out kills the process, and again; compare."""
    out.mkdir()
    job = CurateJob(config=config, out=out, seed=1, workers=1)
    child = os.fork()
    if not child:
        try:
            strike()
            curate(job)
        finally:
            os._exit(7)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    curate(job)
    for name in FILES:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("place", PLACES)
def test_killed_anywhere_it_goes_on_to_the_same_output(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, Path], place: str
) -> None:
    folder, expected = whole
    same_after_a_kill(config_of(folder), expected, tmp_path / "killed", lambda: PLACES[place](monkeypatch))


def test_killed_while_it_mixes_it_goes_on_to_the_same_output(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, Path]
) -> None:
    folder, _ = whole
    mix = {"tokens": 5000, "shuffle": True}
    expected = made(folder, tmp_path / "expected", mix=mix)
    mixed = [line for line in (expected / "rejects.jsonl").read_text().splitlines() if '"step": "mix"' in line]
    assert len(mixed) > 100
    listed = run.rejected

    def struck(record: Any, step: str, *rest: Any, **more: Any) -> dict[str, Any]:
        return mixing(record, step, *rest, **more) if step == "mix" else listed(record, step, *rest, **more)

    mixing = killing(listed, 20)
    config = config_of(folder, mix=mix)
    same_after_a_kill(config, expected, tmp_path / "killed", lambda: monkeypatch.setattr(run, "rejected", struck))


def test_known_shards_are_not_filtered_again(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_sources(tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    job = CurateJob(config=config_of(folder), out=out, seed=1, workers=1)
    monkeypatch.setattr(run, "_deduplicate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        curate(job)
    monkeypatch.undo()
    monkeypatch.setattr(read, "SHARD_BYTES", 20_000)
    monkeypatch.setattr(run, "filter_shard", lambda *_: pytest.fail("filtered again"))
    assert curate(job)["kept"] == 210


@pytest.mark.slow
def test_command_killed_again_and_again_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = write_sources(tmp_path / "in", 20_000)
    command = [sys.executable, "-m", "xft", "curate", "--data", str(folder), "--workers", "2"]
    expected, out = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, str(expected)], check=True, capture_output=True)
    kills, seconds = 0, 1.0
    while not out.exists():
        process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            seconds *= 1.2
    print(f"killed {kills} times")
    assert kills > 2
    assert folder_digest(out) == folder_digest(expected)


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time, os\nfrom xft.curate.pool import each_done\n"
        "def work(n):\n    open(sys.argv[1] + f'/{os.getpid()}', 'w').close()\n    time.sleep(60)\n"
        "if __name__ == '__main__':\n    list(each_done(work, [1, 2], 2))\n"
    )
    pids = tmp_path / "pids"
    pids.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(pids)])
    deadline = time.monotonic() + 30
    while len(list(pids.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [int(path.name) for path in pids.iterdir()]
    parent.kill()
    parent.wait()
    assert len(workers) == 2
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_worker_that_dies_is_an_error_with_a_remedy() -> None:
    from xft.curate.pool import each_done

    with pytest.raises(RunError, match="a worker process died"):
        list(each_done(os._exit, [3, 3], 2))


# --- the command line -------------------------------------------------------------------------------------------------


def xft(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["xft", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    folder, out = write_sources(tmp_path / "in"), tmp_path / "out"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("steps: [schema, length: {max_lines: 4}]\ndedup: {near: false}\n")
    call = ("curate", out, "--data", folder, "--recipe", recipe, "--workers", "1", "--set", "mix.shuffle=true")
    assert xft(monkeypatch, *call) == 0
    printed = capfd.readouterr()
    assert "could not be read" in printed.out and "response over 4 lines" in printed.out
    assert "(humaneval, mbpp: by ten-word runs only; ds1000, " in printed.err
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["config"]["steps"][1] == {"name": "length", "options": {"max_lines": 4}}
    assert manifest["inputs"]["benchmark mbpp"] == "fingerprints"
    assert xft(monkeypatch, *call) == 0
    assert "done before" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        (None, [], "no data; give --data FILE"),
        ("steps: [parze]", ["--data", "shipped:python"], "unknown step 'parze'"),
        ("steps: [length: {max: 3}]", ["--data", "shipped:python"], "step length: top level: unknown key 'max'"),
        ("stepz: []", ["--data", "shipped:python"], "unknown key 'stepz'"),
        ("- a", [], "a recipe is a mapping of keys"),
        ("dedup: {bands: 7}", ["--data", "shipped:python"], "bands must divide permutations=128, got 7"),
        ("decontaminate: {benchmarks: [x]}", ["--data", "shipped:python"], "unknown benchmark 'x'"),
        (None, ["--data", "nowhere.jsonl"], "no such file"),
        (None, ["--data", "shipped:python", "shipped:python"], "two sources are called 'shipped:python'"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    recipe: str | None,
    arguments: list[str],
    message: str,
) -> None:
    if recipe is not None:
        (tmp_path / "r.yaml").write_text(recipe)
        arguments = [*arguments, "--recipe", str(tmp_path / "r.yaml")]
    assert xft(monkeypatch, "curate", tmp_path / "out", *arguments) == 2
    assert message in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_classifier_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for side, word in (("good", "tested"), ("bad", "broken")):
        rows = [{"instruction": f"Write {n}.", "response": f"{word} code {n} " * 5} for n in range(40)]
        (tmp_path / f"{side}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "model"
    assert xft(
        monkeypatch, "curate", "classifier", out, "--positives", tmp_path / "good.jsonl",
        "--negatives", tmp_path / "bad.jsonl", "--set", "buckets=4096",
    ) == 0  # fmt: skip
    assert "accuracy 1.000" in capfd.readouterr().out
    (tmp_path / "r.yaml").write_text(f"steps: [classifier: {{model: {out}}}]\ndedup: {{near: false, exact: false}}\n")
    call = ("curate", tmp_path / "out", "--data", tmp_path / "good.jsonl", tmp_path / "bad.jsonl", "--workers", 1)
    assert xft(monkeypatch, *call, "--recipe", tmp_path / "r.yaml") == 0
    assert json.loads((tmp_path / "out" / "statistics.json").read_text())["kept"] == 40


@pytest.mark.parametrize(
    ("library", "recipe"),
    [("rensa", "steps: [schema]"), ("tree_sitter", "steps: [parse]"), ("py3langid.langid", "steps: [language]")],
)
def test_missing_library_stops_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], library: str, recipe: str
) -> None:
    from xft.curate import text

    text._identifier.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / "r.yaml").write_text(recipe)
    call = ("curate", tmp_path / "out", "--data", "shipped:python", "--recipe", tmp_path / "r.yaml")
    assert xft(monkeypatch, *call) == 2
    assert "pip install 'xft[data]'" in capfd.readouterr().err
    assert not list(tmp_path.rglob("*.jsonl"))
