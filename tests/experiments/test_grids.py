"""The grids of the repository: plans that hold, seeds and steps as they say."""

from pathlib import Path

import pytest

from xft.experiment.config import HELDOUT, load_grid
from xft.experiment.plan import Plan

GRIDS = sorted((Path(__file__).parents[2] / "experiments").glob("*/*.yaml"))
GRIDS = [path for path in GRIDS if not path.stem.startswith("recipe")]


def test_there_are_grids():
    assert {path.stem for path in GRIDS} >= {"methods", "first-look", "strong", "screen-rates"}


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_grid_gives_its_cells_and_its_screening(path):
    grid = load_grid(path)
    plan = Plan(grid)
    cells = plan.confirmation({})
    assert len(cells) == len(grid.methods) * len(grid.seeds)
    if grid.endpoint != HELDOUT:
        assert {cell.recipe.eval.benchmarks[0].name for cell in cells} == {grid.endpoint}
        if path.parent.name == "miniature":  # it has problems of its own for each
            assert ("screen" if path.stem.startswith("screen") else "confirm") in grid.endpoint
    for combination in plan.combinations():
        for method in grid.methods:
            tried = plan.screening(method, combination)
            assert not any(cell.recipe.eval.benchmarks for cell in tried)  # held-out loss decides, no problem is used


def epochs(cell):
    """Return the passes over the pairs that a row takes, the learned merge's among them."""
    recipe = cell.recipe
    if cell.row in ("sft", "soup"):
        return recipe.sft.epochs
    return recipe.tune.epochs + (recipe.merge.epochs if cell.row == "xft" else 0)


@pytest.mark.parametrize("name", ["methods", "strong"])
def test_the_confirmation_takes_as_many_steps_for_all_methods_but_the_one_of_equal_flops(name):
    plan = Plan(load_grid(next(path for path in GRIDS if path.stem == name)))
    taken = {cell.method: epochs(cell) for cell in plan.confirmation({}) if cell.row != "base"}
    assert {method for method, number in taken.items() if number != 3} == {"sft-flops"}
