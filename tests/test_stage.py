"""A stage's folder: partial until whole, skipped when done, never overwritten, resumed after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from xft import stage
from xft.errors import BusyError, FetchError, RunError
from xft.stage import Meter, Stage, drop_files, folder_digest, locked, read_manifest, run_stage, set_aside

Work = Callable[[Path, Meter], None]


def write(text: str = "result") -> Work:
    def work(folder: Path, meter: Meter) -> None:
        (folder / "result.txt").write_text(text)
        meter.tokens, meter.flops, meter.dtype, meter.extra["note"] = 12, 3.0, "float32", "hello"

    return work


def refuse(folder: Path, meter: Meter) -> None:
    raise AssertionError("the work was called")


def stage_of(work: Work, **changes: Any) -> Stage:
    fields: dict[str, Any] = {"name": "demo", "config": {"a": 1}, "inputs": {"base": "abc"}, "work": work, "seed": 4}
    return Stage(**(fields | changes))


def test_work_fills_a_partial_folder_that_is_renamed_when_whole(tmp_path: Path) -> None:
    out = tmp_path / "sub" / "out"

    def work(folder: Path, meter: Meter) -> None:
        assert folder == tmp_path / "sub" / "out.partial"
        assert not out.exists()
        write()(folder, meter)

    run_stage(out, stage_of(work))
    assert (out / "result.txt").read_text() == "result"
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "result.txt"]


def test_the_manifest_says_what_made_the_folder(tmp_path: Path) -> None:
    stage = stage_of(write())
    manifest = run_stage(tmp_path / "out", stage)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    assert manifest["stage"] == "demo"
    assert manifest["key"] == stage.key
    assert (manifest["config"], manifest["inputs"], manifest["seed"]) == ({"a": 1}, {"base": "abc"}, 4)
    assert manifest["files"] == {"result.txt": hashlib.sha256(b"result").hexdigest()}
    assert (manifest["tokens"], manifest["flops"], manifest["dtype"], manifest["note"]) == (12, 3.0, "float32", "hello")
    assert manifest["wall_seconds"] >= 0
    assert manifest["peak_memory_bytes"] > 1 << 20
    assert manifest["started"] <= manifest["finished"]
    assert {"python", "xft", "torch", "transformers", "safetensors"} <= set(manifest["versions"])


def test_a_finished_folder_with_the_same_key_is_not_made_again(tmp_path: Path) -> None:
    first = run_stage(tmp_path / "out", stage_of(write()))
    assert run_stage(tmp_path / "out", stage_of(refuse)) == first


def test_a_folder_that_another_process_finished_meanwhile_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_stage(tmp_path / "out", stage_of(write()))
    answers = iter([None, first])  # not there at the first look, there once the lock is held
    monkeypatch.setattr("xft.stage.read_manifest", lambda folder: next(answers))
    (tmp_path / "out").rename(tmp_path / "kept")
    assert run_stage(tmp_path / "out", stage_of(refuse)) == first
    assert not (tmp_path / "out.partial").exists()


def test_the_same_content_has_the_same_digest_and_metrics_do_not_count(tmp_path: Path) -> None:
    def with_metrics(text: str) -> Work:
        def work(folder: Path, meter: Meter) -> None:
            write()(folder, meter)
            (folder / "metrics.jsonl").write_text(text)

        return work

    digests = [
        run_stage(tmp_path / name, stage_of(work))["digest"]
        for name, work in (("a", with_metrics("1 s")), ("b", with_metrics("2 s")), ("c", write("other")))
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    "changes", [{"name": "other"}, {"config": {"a": 2}}, {"inputs": {"base": "abd"}}, {"seed": 5}, {"seed": None}]
)
def test_the_key_depends_on_everything_that_the_content_depends_on(changes: dict[str, Any]) -> None:
    assert stage_of(write(), **changes).key != stage_of(write()).key
    assert stage_of(write("else"), **changes).key == stage_of(refuse, **changes).key


def test_a_finished_folder_with_another_key_is_refused_and_untouched(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_stage(out, stage_of(write()))
    before = folder_digest(out)
    advice = "; give another output folder or move this one away"
    for changes, said in (
        ({"seed": 9}, "made with seed 4 instead of 9"),
        ({"config": {"a": 2, "b": {"c": 1}}}, "made with a 1 instead of 2, b.c None instead of 1"),
        ({"inputs": {"base": "xyz"}}, "made with other base"),
        ({"name": "tune"}, "made by demo"),
        ({"config": dict.fromkeys("abcdef", 3)}, "d None instead of 3 and more"),
    ):
        with pytest.raises(RunError) as refused:
            run_stage(out, stage_of(refuse, **changes))
        assert f"{out}: holds something else (" in str(refused.value)
        assert f"{said}){advice}" in str(refused.value)
    assert folder_digest(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_someone_elses_is_refused_and_untouched(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="holds something else"):
        run_stage(out, stage_of(refuse))
    assert (out / "thesis.txt").read_text() == "mine"
    with pytest.raises(RunError, match="holds something else"):
        run_stage(out / "thesis.txt", stage_of(refuse))
    assert (out / "thesis.txt").read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    run_stage(tmp_path / "out", stage_of(write()))
    assert (tmp_path / "out" / "result.txt").exists()


def fail_halfway(folder: Path, meter: Meter) -> None:
    (folder / "half.txt").write_text("half")
    time.sleep(0.05)
    raise KeyboardInterrupt


def test_interrupted_work_goes_on_in_the_same_partial_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_stage(out, stage_of(fail_halfway))
    assert not out.exists()
    begun = json.loads((tmp_path / "out.partial" / "begun.json").read_text())

    def go_on(folder: Path, meter: Meter) -> None:
        assert (folder / "half.txt").read_text() == "half"
        write()(folder, meter)

    manifest = run_stage(out, stage_of(go_on))
    assert sorted(path.name for path in out.iterdir()) == ["half.txt", "manifest.json", "result.txt"]
    assert manifest["started"] == begun["started"]
    assert manifest["wall_seconds"] >= 0.05  # both attempts count


@pytest.mark.parametrize(("name", "text", "kept"), [
    ("humaneval/samples.jsonl", "an answer", True),
    ("resume/checkpoint-8/model.safetensors", "weights", True),
    ("humaneval/samples.jsonl", "", False),
    ("train.jsonl", "pairs", False),
])  # fmt: skip
def test_an_early_error_deletes_only_what_the_next_try_would_not_go_on_from(
    tmp_path: Path, name: str, text: str, kept: bool
) -> None:
    def fail(folder: Path, meter: Meter) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        raise FetchError("the server is gone")

    with pytest.raises(FetchError):
        run_stage(tmp_path / "out", stage_of(fail))
    assert (tmp_path / "out.partial" / name).exists() == (tmp_path / "out.partial").exists() == kept


def test_a_file_is_on_the_disk_before_it_takes_the_old_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "tree.json", []
    path.write_text("old")

    def sync(number: int) -> None:
        synced.append((path.read_text(), os.fstat(number).st_size))

    monkeypatch.setattr(os, "fsync", sync)
    stage.write_json(path, {"a": 1})
    assert synced == [("old", path.stat().st_size)]
    assert json.loads(path.read_text()) == {"a": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["tree.json"]


def test_a_changed_key_puts_the_partial_folder_aside(tmp_path: Path) -> None:
    out = tmp_path / "out"
    old = stage_of(fail_halfway)
    with pytest.raises(KeyboardInterrupt):
        run_stage(out, old)
    run_stage(out, stage_of(write(), seed=5))
    assert not (out / "half.txt").exists()
    (aside,) = [path for path in tmp_path.iterdir() if path != out]
    assert aside.name == f"out.partial.{old.key[:8]}"
    assert (aside / "half.txt").read_text() == "half"


def test_setting_aside_never_overwrites(tmp_path: Path) -> None:
    names = []
    for text in ("first", "second", "third"):
        folder = tmp_path / "out"
        folder.mkdir()
        (folder / "x").write_text(text)
        names.append(set_aside(folder, "k" * 64))
    assert [(name.name, (name / "x").read_text()) for name in names] == [
        ("out.kkkkkkkk", "first"),
        ("out.kkkkkkkk-2", "second"),
        ("out.kkkkkkkk-3", "third"),
    ]


HOLDER = """
import sys, time
from pathlib import Path
from xft.stage import Stage, run_stage

def work(folder, meter):
    (folder / "begun.txt").write_text("x")
    print("working", flush=True)
    time.sleep(60)

stage = Stage(name="demo", config={"a": 1}, inputs={"base": "abc"}, work=work, seed=4)
run_stage(Path(sys.argv[1]), stage)
"""


def test_a_second_process_is_refused_while_the_first_one_lives_and_goes_on_after_its_kill(tmp_path: Path) -> None:
    out = tmp_path / "out"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "working\n"
        with pytest.raises(RunError, match=f"process {holder.pid} is writing here; wait for it, or stop it first"):
            run_stage(out, stage_of(refuse))
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    run_stage(out, stage_of(write()))
    assert sorted(path.name for path in out.iterdir()) == ["begun.txt", "manifest.json", "result.txt"]


def test_the_time_of_a_killed_try_counts_up_to_what_it_wrote_last(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "working\n"
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
        began = (tmp_path / "out.partial/begun.json").stat().st_mtime
        os.utime(tmp_path / "out.partial/begun.txt", (began + 100, began + 100))
    assert 200 <= run_stage(out, stage_of(write()))["wall_seconds"] < 260


def test_a_second_process_with_another_key_leaves_the_first_ones_folder_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "working\n"
        with pytest.raises(RunError, match=f"process {holder.pid} is writing here"):
            run_stage(out, stage_of(refuse, seed=9))
        assert (tmp_path / "out.partial" / "begun.txt").exists()
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()


def test_a_lost_file_makes_the_folder_unfinished(tmp_path: Path) -> None:
    run_stage(tmp_path / "out", stage_of(write()))
    (tmp_path / "out" / "result.txt").unlink()
    assert read_manifest(tmp_path / "out") is None


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    run_stage(tmp_path / "out", stage_of(write()))
    path = tmp_path / "out" / "manifest.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(RunError, match=r"damaged .* move its folder away and run again") as caught:
        run_stage(tmp_path / "out", stage_of(refuse))
    assert str(caught.value).startswith(str(path))


def test_files_that_are_dropped_while_a_manifest_is_read_do_not_count_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage(tmp_path / "out", stage_of(write()))
    real, waiting = stage.read_json, [lambda: drop_files(tmp_path / "out", "result*")]

    def interrupted(path: Path, default: Any) -> Any:
        tree = real(path, default)
        if waiting:
            waiting.pop()()
        return tree

    monkeypatch.setattr(stage, "read_json", interrupted)
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest["dropped"] == ["result.txt"]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest | {"dropped": []}))
    waiting.append((tmp_path / "out" / "manifest.json").unlink)
    assert read_manifest(tmp_path / "out") is None


def test_a_lock_is_shared_or_held_alone_and_can_be_waited_for(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    refused = pytest.raises(BusyError, match="another process is writing here")
    with locked(path, shared=True), locked(path, shared=True), refused, locked(path):
        pass
    refused = pytest.raises(BusyError, match=f"process {os.getpid()} is writing here")
    with locked(path), refused, locked(path, shared=True):
        pass
    with ExitStack() as other:
        other.enter_context(locked(path))
        threading.Timer(0.2, other.close).start()
        began = time.monotonic()
        with locked(path, wait=60):
            assert time.monotonic() - began > 0.1
