"""What an experiment's table and page say, from folders written by hand."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from browser import CHROMIUM, WIDTHS, measure
from xft.errors import RecipeError
from xft.eval.over_seeds import compare_over_seeds
from xft.experiment.cells import read_outcomes, write_outcomes
from xft.experiment.choice import Candidate, Choice, write_choices
from xft.experiment.collect import _shared
from xft.experiment.config import Grid, load_grid
from xft.experiment.plan import Plan
from xft.experiment.report import markdown, render, results_table, write_results
from xft.recipe import shipped_recipes
from xft.report import plots
from xft.report.table import duration

NASTY = "<script>alert('x')</script> | &amp;"
GAINS = {"base": 0.2, "sft": 0.0, "xft": -0.05, "same": 0.0}
"""In held-out loss, against SFT."""


def write_json(path: Path, tree: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree) + "\n")


def write_cells(out: Path, seeds: list[int], **changes: Any) -> Grid:
    """Write an experiment whose held-out gains are known and whose method `broken` failed."""
    methods = {"base": {"row": "base"}, "sft": {"row": "sft"}, "xft": {"row": "xft"},
               "same": {"row": "sft", "set": {"sft.lr": 1e-4}}, "broken": {"row": "moe"}}  # fmt: skip
    tree = {"name": "made-up", "recipe": "tiny", "seeds": seeds, "methods": methods, "baseline": "sft",
            "set": {"base": NASTY}}  # fmt: skip
    (out / "in.yaml").write_text(yaml.safe_dump(tree | changes))
    grid = load_grid(out / "in.yaml")
    outcomes = {}
    for cell in Plan(grid).confirmation({}):
        outcomes[cell.name] = {"recipe": cell.recipe_hash, "status": "done", "key": f"{cell.seed}{cell.method:0<63}"}
        if cell.method.startswith("broken"):
            outcomes[cell.name] |= {"status": "failed", "reason": f"step 1: {NASTY}"}
            continue
        generator = np.random.default_rng(cell.seed)
        losses = generator.normal(1.0, 0.3, 30) + GAINS[cell.method]
        losses += 0.004 * np.random.default_rng([cell.seed, len(cell.method)]).standard_normal(30)
        folder = out / cell.folder / "eval" / cell.row
        write_json(folder / "heldout/scores.json", {"benchmark": "heldout", "data_hash": str(cell.seed)})
        lines = [json.dumps({"pair": f"{cell.seed} {n}", "loss": loss}) for n, loss in enumerate(losses.tolist())]
        (folder / "heldout/losses.jsonl").write_text("\n".join(lines) + "\n")
        write_json(folder / "humaneval/scores.json", {"benchmark": "humaneval", "data_hash": "h"})
        verdicts = [json.dumps({"task_id": f"HumanEval/{n}", "sample": 0, "fingerprint": "f",
                                "status": "passed" if n < 2 else "failed"}) for n in range(8)]  # fmt: skip
        (folder / "humaneval/verdicts.jsonl").write_text("\n".join(verdicts) + "\n")
        for place in ("base", "data", *cell.made_by, f"eval/{cell.row}"):
            manifest = {"key": f"key of {place}", "digest": "d", "finished": "2026-01-01T00:00:00+00:00",
                        "wall_seconds": 60.0, "flops": 1e12 if place in ("sft", "moe") else None,
                        "peak_memory_bytes": 1e9, "device": "CPU", "versions": {"torch": "2"}}  # fmt: skip
            write_json(out / cell.folder / place / "manifest.json", manifest)
    write_outcomes(out, outcomes)
    return grid


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path


def test_the_verdicts_follow_the_losses(out: Path) -> None:
    results = write_results(write_cells(out, [1, 2, 3, 4, 5, 6]), out, "xft experiment in.yaml")
    found = {method.name: method.differences.get("heldout") for method in results.methods}
    words = {name: each.difference.verdict if each else None for name, each in found.items()}
    assert words == {"base": "worse", "sft": None, "xft": "better", "same": "can't tell", "broken": None}
    xft = found["xft"]
    assert xft is not None
    assert xft.difference.mean == pytest.approx(-0.05, abs=0.002)
    assert xft.p == 2 / 64
    assert xft.relative == pytest.approx(-0.05, abs=0.01)
    table = markdown(results)
    assert "Held-out loss, against sft: better: xft; worse: base; can't tell: same." in table
    assert "it needs 8 for 1%" in table
    assert "for 5%" not in table
    assert "6 of 30 cells failed" in table
    assert "One seed" not in table


def test_with_few_seeds_or_one_the_limits_are_said(out: Path) -> None:
    grid = write_cells(out, [1, 2, 3])
    assert "p = 0.25 at least with 3 seeds; it needs 6 for 5% and 8 for 1%" in markdown(write_results(grid, out, ""))
    one = write_results(write_cells(out, [4]), out, "")
    assert "One seed: the intervals cover the choice of problems, not the luck of training." in markdown(one)
    assert "Seed by seed" not in render(one)


def test_all_are_compared_with_other_methods_too(out: Path) -> None:
    results = write_results(write_cells(out, [1, 2, 3, 4, 5, 6], against=["same", "base"]), out, "")
    by_name = {method.name: method for method in results.methods}
    assert by_name["xft"].others["base"].difference.mean == pytest.approx(-0.25, abs=0.003)
    assert by_name["xft"].others["same"].p == 2 / 64
    assert set(by_name["same"].others) == {"base"}
    told = by_name["sft"].others["same"].difference
    assert told.mean == -by_name["same"].differences["heldout"].difference.mean
    table, page = markdown(results), render(results)
    for name in ("same", "base"):
        assert f"## Against {name}" in table
        assert f"<h2>Against {name}</h2>" in page
    assert "12 verdicts, each at 5%" in table  # those of the second measure too
    for text in (table, page):
        assert "p is over the seeds, with these problems; only the intervals cover the choice of problems, too" in text
    with pytest.raises(RecipeError, match="against must be one of the methods"):
        write_cells(out, [1], against=["sfft"])
    with pytest.raises(RecipeError, match="sft is the baseline"):
        write_cells(out, [1], against=["sft"])


def test_only_what_is_shown_is_compared(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid, compared = write_cells(out, [1, 2], against=["same", "base"]), []
    monkeypatch.setattr(
        "xft.experiment.collect.compare_over_seeds",
        lambda *values, **how: compared.append(values) or compare_over_seeds(*values, **how),
    )
    shown = sum(len(each.differences) + len(each.others) for each in write_results(grid, out, "").methods)
    assert len(compared) == shown == 12


def test_unequal_passes_and_other_versions_are_said(out: Path) -> None:
    equal = markdown(write_results(write_cells(out, [1, 2]), out, ""))
    assert "Passes over" not in equal
    assert "different versions" not in equal
    methods = {"base": {"row": "base"}, "sft": {"row": "sft"}, "same": {"row": "sft", "set": {"sft.epochs": 9}},
               "xft": {"row": "xft", "set": {"sft.soup": 2, "upcycle.experts_from": "soup"}}}  # fmt: skip
    grid = write_cells(out, [1, 2], methods=methods)
    path = out / "runs/recipe/seed-1/sft/manifest.json"
    write_json(path, json.loads(path.read_text()) | {"versions": {"torch": "1"}, "device": "GPU"})
    results = write_results(grid, out, "")
    assert results.versions == {"torch": ("2", "1")}
    assert results.devices == ("CPU", "GPU")
    assert "Passes over the pairs: 2 of sft; 4 of xft; 9 of same. A difference may come of that." in markdown(results)
    assert "Made with different versions: torch 2, 1. A difference" in markdown(results)
    assert "<dt>torch</dt><dd>2, 1</dd>" in render(results)


def test_the_screenings_cost_says_that_failed_cells_are_not_in_it(out: Path) -> None:
    choose = {"vary": {"tune.lr": [1e-4, 1e-3]}, "seeds": [101]}
    grid = write_cells(out, [1], choose=choose)
    rates = [{"tune.lr": rate} for rate in choose["vary"]["tune.lr"]]
    tried = [Candidate(settings=rates[0], scores={"101": 0.5}, failures={}, folders=()),
             Candidate(settings=rates[1], scores={}, failures={"101": "nan"}, folders=())]  # fmt: skip
    write_choices(out, {"sft": Choice(chosen=rates[0], candidates=tuple(tried), flops=1e12)})
    assert "failed cell" not in render(write_results(grid, out, ""))
    (cell,) = Plan(grid).screening("sft", rates[1])
    write_outcomes(out, {cell.name: {"recipe": cell.recipe_hash, "status": "failed", "reason": "nan"}})
    assert "1.0e12 FLOPs, 0.0 s, without 1 failed cell, stages" in render(write_results(grid, out, ""))


def test_a_method_that_lacks_seeds_is_named(out: Path) -> None:
    grid = write_cells(out, [1, 2, 3])
    outcomes = read_outcomes(out)
    write_outcomes(out, {"same, seed 3": {**outcomes["same, seed 3"], "status": "failed", "reason": "r"}})
    table = markdown(write_results(grid, out, ""))
    assert "Over fewer seeds than others: same." in table
    assert "p = 0.5 at least with 2 seeds" in table


def test_problems_of_ones_own_can_decide(out: Path) -> None:
    own = "pairs:some/own.jsonl"
    grid = write_cells(out, [1, 2], endpoint=own, set={"base": NASTY, "eval.benchmarks": [own]})
    for folder in out.glob("runs/*/*/eval/*/humaneval"):
        folder.rename(folder.with_name("pairs-own"))
    results = write_results(grid, out, "")
    assert {method.name: method.estimates[own].mean for method in results.methods if method.estimates} == {
        "base": 0.25, "sft": 0.25, "xft": 0.25, "same": 0.25,
    }  # fmt: skip
    files = [out / line.items[own] for line in results.lines if line.status == "done"]
    assert files
    assert all(file.is_file() for file in files)


def test_costs_are_those_of_the_stages_that_the_row_needs(out: Path) -> None:
    results = write_results(write_cells(out, [1, 2]), out, "")
    costs = {method.name: (method.flops, method.wall_seconds) for method in results.methods}
    assert costs["base"] == (0.0, 0.0)
    assert costs["sft"] == (1e12, 60.0)
    assert costs["xft"] == (1e12, 180.0)  # upcycle, moe, merge
    assert costs["broken"] == (None, None)


def test_every_cell_is_there_with_its_hash_and_its_command(out: Path) -> None:
    results = write_results(write_cells(out, [1, 2]), out, "xft experiment in.yaml")
    page, table = (out / "report/index.html").read_text(), (out / "results.md").read_text()
    for line in results.lines:
        assert line.command in table
        if line.status == "done":
            assert f'title="{line.key}"' in page
            assert f"| {line.method} | {line.seed} |" in table
    assert table.count("xft experiment in.yaml") == 1
    tree = json.loads((out / "results.json").read_text())
    assert [(cell["method"], cell["status"]) for cell in tree["lines"]] == [
        (line.method, line.status) for line in results.lines
    ]
    assert all((out / path).is_file() for cell in tree["lines"] for path in cell["items"].values())


def test_what_comes_from_outside_is_escaped_and_no_script_is_there(out: Path) -> None:
    write_results(write_cells(out, [1, 2]), out, f"xft experiment '{NASTY}'")
    page = (out / "report/index.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 5  # base, reasons, command, commands, grid
    assert not re.search(r'(src|href)="', page)
    for line in (out / "results.md").read_text().splitlines():
        if line.startswith("| broken, seed"):
            assert re.fullmatch(r"\| broken, seed \d \| step 1: <script>.*</script> \\\| &amp; \|", line)


def test_methods_without_scores_yet_are_not_run(out: Path) -> None:
    grid = write_cells(out, [1])
    (out / "cells.json").unlink()
    results = write_results(grid, out, "")
    assert {line.status for line in results.lines} == {"not run"}
    assert "nothing to compare yet" in markdown(results)
    assert "5 of 5 cells are not made yet" in markdown(results)


def test_a_cell_of_an_earlier_recipe_does_not_count(out: Path) -> None:
    grid = write_cells(out, [1])
    changed = grid.model_copy(update={"set": {**grid.set, "tune.lr": 0.5}})
    assert {line.status for line in write_results(changed, out, "").lines} == {"not run"}


def test_what_an_earlier_grid_chose_for_a_method_that_is_gone_is_left_out(out: Path) -> None:
    grid = write_cells(out, [1], choose={"vary": {"tune.lr": [1e-4, 1e-3]}, "seeds": [101]})
    tried = Candidate(settings={"tune.lr": 1e-4}, scores={"101": 0.5}, failures={}, folders=())
    write_choices(out, {"gone": Choice(chosen=tried.settings, candidates=(tried,))})
    results = write_results(grid, out, "")
    assert (results.choices, results.screened) == ({}, ())
    assert "done" in {line.status for line in results.lines}


def test_a_cell_whose_scores_are_gone_is_not_made(out: Path) -> None:
    grid = write_cells(out, [1, 2])
    shutil.rmtree(out / "runs/recipe/seed-2")  # base, SFT, XFT
    lines = write_results(grid, out, "").lines
    assert {line.method for line in lines if line.seed == 2 and line.status == "not run"} == {"base", "sft", "xft"}
    assert {line.status for line in lines if line.seed == 1 and line.method != "broken"} == {"done"}


def name_pairs(out: Path, seed: int, pairs: Sequence[int]) -> None:
    """Say in a seed's losses of which pairs they are, and drop those of others."""
    for path in out.glob(f"runs/*/seed-{seed}/eval/*/heldout/losses.jsonl"):
        losses = map(json.loads, path.read_text().splitlines())
        lines = [loss | {"pair": f"pair {pair}"} for loss, pair in zip(losses, pairs, strict=False)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_pairs_that_seeds_share_are_known_by_their_digests(out: Path) -> None:
    grid = write_cells(out, [1, 2])
    assert write_results(grid, out, "").items == 60
    name_pairs(out, 1, range(30))
    name_pairs(out, 2, range(10, 35))
    assert write_results(grid, out, "").items == 35


def test_a_recipe_that_is_edited_meanwhile_changes_nothing_of_what_a_running_experiment_tells(
    out: Path, tmp_path: Path
) -> None:
    grid, copy = write_cells(out, [1]), tmp_path / "recipe.yaml"
    copy.write_bytes(shipped_recipes()[grid.recipe].read_bytes())
    grid = grid.model_copy(update={"recipe": str(copy)})
    plan = Plan(grid)
    copy.write_text(copy.read_text().replace("epochs: ", "epochs: 1", 1))
    assert "done" in {line.status for line in write_results(grid, out, "", plan).lines}
    assert {line.status for line in write_results(grid, out, "").lines} == {"not run"}


def test_the_terminals_table_has_a_line_for_each_method(out: Path) -> None:
    table = results_table(write_results(write_cells(out, [1, 2]), out, ""))
    assert table.row_count == 5


@pytest.mark.skipif(
    CHROMIUM is None, reason="not run: experiment's page in a browser (install Debian package chromium)"
)
def test_the_page_never_scrolls_sideways(out: Path, tmp_path: Path) -> None:
    long = {"base": "x" * 200, "upcycle.router": "shared-normalized", "prompt": "magicoder"}
    methods = {"sft": {"row": "sft"}, "xft": {"row": "xft", "set": long}, "base": {"row": "base"},
               "broken-with-a-long-name": {"row": "moe"}, "broken": {"row": "moe"}}  # fmt: skip
    write_results(write_cells(out, list(range(1, 11)), methods=methods), out, "xft experiment in.yaml " + "y" * 300)
    _, sizes = measure(out / "report/index.html", tmp_path)
    for width, size in zip(WIDTHS, sizes, strict=True):
        assert (size["client"], size["scroll"]) == (width, width)
        assert size["outside"] == []
        assert size["hidden"] == []
        assert size["height"] > 2000


def marks(*at: tuple[float, float, float] | None) -> list[tuple[float, plots.Mark]]:
    return [(float(place), plots.Mark(label=f"m{place}", tone="sft", at=each)) for place, each in enumerate(at)]


def test_a_scatter_draws_each_mark_at_its_cost_with_its_interval() -> None:
    drawing = plots.scatter(marks((0.0, -1.0, 1.0), None, (4.0, 3.0, 4.0)), label="<x>", height=100, write=str)
    assert drawing.count("<circle") == drawing.count("whisker") == 2
    assert "&lt;x&gt;" in drawing
    places = [float(x) for x in re.findall(r'cx="([\d.]+)%"', drawing)]
    assert sorted(places) == [0.0, 100.0]
    assert "Not run" in plots.scatter(marks(None), label="", height=100, write=str)


def test_names_of_a_scatter_do_not_lie_over_one_another() -> None:
    close = [(10.0, plots.Mark(label=f"m{n}", tone="sft", at=(0.5 + n / 1000, 0.0, 1.0))) for n in range(9)]
    drawing = plots.scatter(close, label="", height=300, write=str)
    downs = sorted(float(y) for y in re.findall(r'y="([\d.]+)" dy=".34em" text-anchor="(?:start|end)">m', drawing))
    assert 3 <= len(downs) < 9
    assert max(downs) <= 150 + plots.FAR
    assert all(b - a >= plots.BETWEEN_LABELS for a, b in itertools.pairwise(downs))
    assert drawing.count("<title>m") == 9


def test_a_name_goes_to_the_side_where_no_other_interval_is() -> None:
    intervals = {"sft": (44.0, 1.0, 1.0), "delta": (50.0, 0.0, 2.0), "far": (190.0, 0.0, 2.0)}
    points = [
        (place, plots.Mark(label=name, tone="sft", at=(1.0, low, high)))
        for name, (place, low, high) in intervals.items()
    ]
    drawing = plots.scatter(points, label="", height=300, write=str)
    anchors = dict((name, side) for side, name in re.findall(r'text-anchor="(start|end)">([a-z]+)<', drawing))
    assert anchors == {"sft": "end", "delta": "start", "far": "end"}


def test_times_are_marked_in_whole_units() -> None:
    points = [(place, plots.Mark(label="m", tone="sft", at=(1.0, 0.0, 2.0))) for place in (0.0, 950.0)]
    drawing = plots.scatter(points, label="", height=300, write=duration, unit=60)
    assert re.findall(r"[\d.]+ (?:min|s)(?=</text>)", drawing) == [
        "0.0 s",
        "5.0 min",
        "10.0 min",
        "15.0 min",
        "20.0 min",
    ]


def test_what_two_methods_share_keeps_its_order_whatever_the_hashes() -> None:
    ours = {f"item/{number}": float(number) for number in range(50)}
    theirs = dict(reversed(ours.items())) | {"item/else": 1.0}
    for kept in _shared([ours], [theirs]):
        assert list(kept[0]) == list(ours)
