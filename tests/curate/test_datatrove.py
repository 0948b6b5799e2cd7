"""The same steps on datatrove's local executor, with several workers, give the same records and reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datatrove", reason="not run: datatrove")
pytest.importorskip("tree_sitter", reason="not run: tree-sitter")

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from xft.curate.config import CurateSource, parse_curate
from xft.curate.datatrove import filters, reader_adapter, to_document, to_example
from xft.curate.run import CurateJob, curate
from xft.data.example import Example


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
        rows.append({"question": "no layout"})
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(folder: Path) -> list[Any]:
    return [json.loads(line) for path in sorted(folder.iterdir()) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_same_records_as_curate(tmp_path: Path, workers: int) -> None:
    write_rows(tmp_path / "in")
    tree = {"sources": [str(tmp_path / "in")], "dedup": {"exact": False, "near": False}, "decontaminate": None}
    config = parse_curate(tree, "test")
    (tmp_path / "out").mkdir()
    curate(CurateJob(config=config, out=tmp_path / "out", seed=0, workers=1))
    own = [json.loads(line)["response"] for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    reader = JsonlReader(str(tmp_path / "in"), adapter=reader_adapter(CurateSource(path="in"), "pairs"))
    excluded = JsonlWriter(str(tmp_path / "excluded"), compression=None)
    writer = JsonlWriter(str(tmp_path / "kept"), compression=None)
    LocalPipelineExecutor(
        pipeline=[reader, *filters(config, excluded), writer],
        tasks=4,
        workers=workers,
        logging_dir=str(tmp_path / "logs"),
    ).run()
    kept = rows_of(tmp_path / "kept")
    assert [row["text"] for row in kept] == own and len(own) == 24
    assert kept[0]["metadata"]["instruction"] == "Add 0 to a number."
    reasons = [row["metadata"]["filter_reason"] for row in rows_of(tmp_path / "excluded")]
    assert sorted(reasons) == ["python does not parse"] * 4 + ["response declines"] * 4  # and no personal data


def test_records_survive_the_way_there_and_back() -> None:
    for example in (
        Example(instruction="ask", response="answer", source="a:1", meta={"license": "MIT"}),
        Example(instruction="", response="text", source="a:2", meta={"kind": "text"}),
    ):
        assert to_example(to_document(example)) == example
