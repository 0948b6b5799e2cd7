"""The same steps on datatrove's executors, with several workers, give the same records and reasons."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datatrove", reason="not run: datatrove")
pytest.importorskip("tree_sitter", reason="not run: tree-sitter")

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from xft.curate.config import CurateConfig, CurateSource, parse_curate
from xft.curate.datatrove import filters, reader_adapter, to_document, to_example
from xft.curate.run import CurateJob, curate
from xft.data.example import Example
from xft.errors import DataError


def write_rows(folder: Path) -> None:
    folder.mkdir()
    for part in range(4):
        rows = [
            {"instruction": f"Add {part} to a number.", "response": f"def add(x):\n    return x + {n}"}
            for n in range(9)
        ]
        rows[2]["response"] = "def add(x:"
        rows[4]["response"] = "I'm sorry, but I can't."
        rows[6]["response"] = "# by jane.doe@gmail.com\n"
        rows[7]["response"] = "# by jane.doe@gmail.com\ndef add(x:"
        rows.append({"question": "no layout"})
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(folder: Path) -> list[Any]:
    return [json.loads(line) for path in sorted(folder.iterdir()) for line in path.read_text().splitlines()]


@pytest.fixture
def config(tmp_path: Path) -> CurateConfig:
    """What looks at one record at a time, over four files."""
    write_rows(tmp_path / "in")
    tree = {"sources": [str(tmp_path / "in")], "dedup": {"exact": False, "near": False}, "decontaminate": None}
    return parse_curate(tree, "test")


def steps(out: Path, config: CurateConfig) -> list[Any]:
    reader = JsonlReader(config.sources[0].path, adapter=reader_adapter(CurateSource(path="in"), "pairs"))
    excluded = JsonlWriter(str(out / "excluded"), compression=None)
    return [reader, *filters(config, excluded), JsonlWriter(str(out / "kept"), compression=None)]


def run_on(executor: type[Any], out: Path, config: CurateConfig, **options: Any) -> tuple[list[Any], list[Any]]:
    """Run the steps on an executor; return what was kept and what was not."""
    executor(pipeline=steps(out, config), tasks=4, logging_dir=str(out / "logs"), **options).run()
    return rows_of(out / "kept"), rows_of(out / "excluded")


@pytest.mark.parametrize("workers", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_same_records_as_curate(tmp_path: Path, config: CurateConfig, workers: int) -> None:
    (tmp_path / "out").mkdir()
    curate(CurateJob(config=config, out=tmp_path / "out", seed=0, workers=1))
    own = [json.loads(line)["response"] for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    kept, excluded = run_on(LocalPipelineExecutor, tmp_path / "local", config, workers=workers)
    assert [row["text"] for row in kept] == own and len(own) == 20
    assert kept[0]["metadata"]["instruction"] == "Add 0 to a number."
    reasons = [row["metadata"]["filter_reason"] for row in excluded]
    assert sorted(reasons) == ["e-mail address"] * 4 + ["python does not parse"] * 8 + ["response declines"] * 4
    assert "jane.doe" not in json.dumps(excluded)  # also where another step rejects
    assert sum("text" in row and bool(row["text"]) for row in excluded) == 8


def test_a_pipeline_that_could_compare_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XFT_DATA", raising=False)
    config = parse_curate({"sources": ["in"], "decontaminate": {"benchmarks": ["mbpp+"]}}, "test")
    with pytest.raises(DataError, match="no benchmark's data are at hand"):
        filters(config)


def test_what_matches_a_benchmark_is_left_out_as_curate_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [f"Tell how far apart the {n} widest of all neighbouring lamps on a street of {n} stand." for n in range(3)]
    problem = {
        "task_id": "HumanEval/0",
        "prompt": f'def apart(lamps):\n    """{told[1]}"""\n',
        "entry_point": "apart",
        "canonical_solution": "    return max(abs(a - b) for a, b in zip(lamps, lamps[1:]))\n",
        "test": "def check(candidate):\n    assert candidate([1, 5]) == 4\n",
    }
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "HumanEval.jsonl.gz").write_bytes(gzip.compress(json.dumps(problem).encode()))
    monkeypatch.setenv("XFT_DATA", str(tmp_path / "data"))
    (tmp_path / "in").mkdir()
    rows = [{"instruction": text, "response": f"```python\nx = {n}\n```"} for n, text in enumerate(told)]
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {"sources": [str(tmp_path / "in")], "decontaminate": {"benchmarks": ["humaneval"]}, "steps": ["schema"]}
    config = parse_curate(tree | {"dedup": {"exact": False, "near": False}}, "test")
    (tmp_path / "out").mkdir()
    curate(CurateJob(config=config, out=tmp_path / "out", seed=0, workers=1))
    own = [json.loads(line)["instruction"] for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    kept, excluded = run_on(LocalPipelineExecutor, tmp_path / "local", config, workers=1)
    assert [row["metadata"]["instruction"] for row in kept] == own == [told[0], told[2]]
    assert [row["metadata"]["filter_reason"] for row in excluded] == ["leak"]

    last = filters(config)[-1]
    monkeypatch.delenv("XFT_DATA")  # as on another machine
    with pytest.raises(DataError, match="this worker's data of humaneval are not those where the pipeline was made"):
        last.filter(to_document(Example(instruction=told[1], response="x", source="s")))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # an error in a thread of the executor would leave it waiting for ever
def test_ray_gives_the_records_of_the_local_executor(
    tmp_path: Path, config: CurateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray", reason="not run: ray")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20)
    try:
        on_ray = run_on(RayPipelineExecutor, tmp_path / "ray", config, workers=2, mem_per_cpu_gb=0.25)
    finally:
        ray.shutdown()
    kept, excluded = on_ray
    assert len(kept) == 20 and len(excluded) == 16
    assert on_ray == run_on(LocalPipelineExecutor, tmp_path / "local", config, workers=1)


def test_records_survive_the_way_there_and_back() -> None:
    for example in (
        Example(instruction="ask", response="answer", source="a:1", meta={"license": "MIT"}),
        Example(instruction="", response="text", source="a:2", meta={"n": 1}),
    ):
        assert to_example(to_document(example)) == example


@pytest.mark.slow
def test_slurm_gives_the_records_of_the_local_executor(tmp_path: Path, config: CurateConfig) -> None:
    if not shutil.which("sbatch") or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("not run: no slurm that answers")
    (partition,) = subprocess.check_output(["sinfo", "-h", "-o", "%R"], text=True).split()[:1]
    out, activate = tmp_path / "slurm", str(Path(sys.prefix, "bin", "activate"))
    job = {"time": "00:10:00", "partition": partition, "mem_per_cpu_gb": 1, "venv_path": activate, "workers": 2}
    out.mkdir()
    pipeline = steps(out, config)
    SlurmPipelineExecutor(pipeline, tasks=4, logging_dir=str(out / "logs"), job_name=str(tmp_path.name), **job).run()
    end = time.monotonic() + 300
    while len(list((out / "logs" / "completions").glob("*"))) < 4:
        assert time.monotonic() < end, subprocess.check_output(["squeue"], text=True)
        time.sleep(1)
    found = rows_of(out / "kept"), rows_of(out / "excluded")
    assert found == run_on(LocalPipelineExecutor, tmp_path / "local", config, workers=1)
