"""What cells leave on disk: what became of each, its values item by item, what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from xft.eval.compare import read_losses, read_rates, read_scores
from xft.experiment.config import HELDOUT
from xft.experiment.plan import Cell
from xft.recipe import folder_of
from xft.report.collect import cost_of, stage_at
from xft.report.contents import Cost
from xft.stage import MANIFEST, locked, read_json, write_json

CELLS, LOCKS = "cells.json", ".locks"
FREE = Cost(tokens=0.0, flops=0.0, wall_seconds=0.0, peak_memory=None)


def read_outcomes(out: Path) -> dict[str, dict[str, Any]]:
    """Return what became of each cell: its status, the hash of its recipe, and its key or the reason of a failure."""
    return dict(read_json(out / CELLS, {}))


def is_done(out: Path, outcomes: Mapping[str, Mapping[str, Any]], cell: Cell) -> bool:
    """Return whether a cell has been made, with the recipe that it has now, and its scores are still there."""
    outcome = outcomes.get(cell.name, {})
    made = outcome.get("status") == "done" and outcome.get("recipe") == cell.recipe_hash
    return made and (out / cell.folder / "eval" / cell.row / MANIFEST).is_file()


def write_outcomes(out: Path, outcomes: Mapping[str, dict[str, Any]]) -> None:
    """Write what became of some cells; what is known of others stays."""
    with writing(out):
        write_json(out / CELLS, {**read_outcomes(out), **outcomes})


def writing(out: Path) -> AbstractContextManager[None]:
    """Wait for one's turn to write what all processes write: notes, tables, the page. For short work only."""
    return locked(out / LOCKS / "writing", wait=math.inf)


def scored(out: Path, cell: Cell, measure: str) -> Path:
    """Return the folder with a cell's scores of a benchmark, or its held-out losses."""
    return out / cell.folder / "eval" / cell.row / folder_of(measure)


def read_values(out: Path, cell: Cell, measure: str) -> dict[str, float] | None:
    """Return each item's value, a loss or the share of passed samples; None where the measure was not taken.

    Raises:
        DataError: a file is damaged.
    """
    folder = scored(out, cell, measure)
    if not (folder / "scores.json").is_file():
        return None
    return read_losses(folder) if measure == HELDOUT else read_rates(folder)


def read_data_hash(out: Path, cell: Cell, measure: str) -> str:
    """Return the hash of what was scored: the same problems have the same one."""
    return str(read_scores(scored(out, cell, measure)).get("data_hash"))


def read_mean(out: Path, cell: Cell, measure: str) -> float | None:
    """Return the mean of the items' values."""
    values = read_values(out, cell, measure)
    return math.fsum(values.values()) / len(values) if values else None


def read_cost(out: Path, cell: Cell) -> Cost | None:
    """Return what making a cell's model takes, from the base on; None unless all stages have finished."""
    places = cell.made_by
    return cost_of([stage_at(out / cell.folder, place) for place in places]) if places else FREE
