"""The data card shows text of anybody's as text."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from xft.curate.assemble import MOST_STATED, _count
from xft.curate.card import cell, counts, table
from xft.curate.config import parse_curate
from xft.curate.run import CurateJob, curate


def test_cells_hold_nothing_but_text() -> None:
    hostile = "a|b\n<script>alert(1)</script> [x](javascript:1) `c` ![i](u) # h *b*"
    shown = cell(hostile)
    assert "\n" not in shown and "<" not in shown and "|" not in shown
    for mark in ("[x](", "![i]", "`c`", "*b*"):
        assert mark not in shown
    assert cell("") == "-"
    assert table(("a", "b"), [(1234, "x|y")]) == ["| a | b |", "|---|---|", "| 1,234 | x&#124;y |"]


def test_counts_name_the_largest() -> None:
    assert counts({"b": 1, "a": 1, "c": 5}) == "c 5; a 1; b 1"
    assert counts({str(number): 1 for number in range(20)}).endswith("; 8 more")


def test_statements_of_records_are_bounded() -> None:
    counter: Counter[str] = Counter()
    for number in range(5000):
        _count(counter, f"licence {number}")
    assert len(counter) == MOST_STATED + 1 and counter["others"] == 5000 - MOST_STATED


def test_hostile_licence_in_a_whole_card(tmp_path: Path) -> None:
    row = {"instruction": "Add two numbers.", "response": "def add(a, b):\n    return a + b\n"}
    row["license"] = "MIT |\n\n# <b>Ha</b> ```"
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (tmp_path / "out").mkdir()
    config = parse_curate({"sources": [str(tmp_path / "a.jsonl")], "decontaminate": None}, "test")
    curate(CurateJob(config=config, out=tmp_path / "out", seed=0, workers=1))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "<b>" not in text and "\n# <" not in text
    assert text.count("```") == 2  # its own settings
    assert "Not compared with benchmarks." in text
