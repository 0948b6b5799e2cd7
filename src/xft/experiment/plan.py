"""Grid -> cells: which run, of which recipe, in which folder, gives each method's score for each seed. No torch."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from xft.errors import RecipeError, did_you_mean
from xft.experiment.config import HELDOUT, Grid
from xft.recipe import Recipe, parse_section, read_tree, set_key

RUNS, SCREENING = "runs", "screening"
Combination = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A method with a seed: a row of a run. Methods with equal recipes share the run."""

    method: str
    row: str
    seed: int
    changes: Mapping[str, Any]
    """All keys in which the recipe differs from the file, the seed excepted."""
    recipe: Recipe
    folder: str
    """The run directory, relative to the experiment's."""
    tried: Combination | None = None
    """The settings that the cell is to try out; None in the experiment proper."""

    @property
    def name(self) -> str:
        """Return what tells the cell from all others."""
        tried = "".join(f", {key}={said(value)}" for key, value in (self.tried or {}).items())
        return f"{self.method}{tried}, seed {self.seed}"

    @property
    def recipe_hash(self) -> str:
        """Return the hash of the resolved recipe."""
        return hashlib.sha256(json.dumps(self.recipe.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    @property
    def made_by(self) -> tuple[str, ...]:
        """Return the stages that make the cell's model from the base."""
        from xft.report.collect import made_by

        return made_by(self.row, self.recipe.sft.soup, self.recipe.upcycle.from_soup)

    @property
    def passes(self) -> int:
        """Return how often the cell's model was trained on the pairs; a learned merge leaves it as it is."""
        recipe = self.recipe
        sft = recipe.sft.epochs or recipe.tune.epochs
        if self.row.split("-")[0] == "base":
            return 0
        if self.row in ("sft", "soup"):
            return sft
        return recipe.tune.epochs + (sft if recipe.upcycle.from_soup else 0)

    def command(self, recipe: str) -> str:
        """Return the command that makes this run alone, from the same recipe."""
        changes = [f"{key}={said(value)}" for key, value in self.changes.items()]
        return shlex.join(["xft", "run", recipe, *changes, f"seed={self.seed}", "--out", f"repeated/{self.folder}"])


@dataclass
class Plan:
    """Makes cells. A run's folder is named by what its settings change; so methods with equal settings share it."""

    grid: Grid
    tree: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        """Read the recipe."""
        self.tree = read_tree(self.grid.recipe)[1]

    def confirmation(self, chosen: Mapping[str, Combination]) -> list[Cell]:
        """Return the cells of the experiment proper: seed by seed, so that each seed is complete early.

        Raises:
            RecipeError: a method's settings make no recipe.
        """
        settings = {name: {**method.set, **chosen.get(name, {})} for name, method in self.grid.methods.items()}
        return [
            self._cell(method, seed, settings, None, f"{RUNS}/{_slug(settings[method])}")
            for seed in self.grid.seeds
            for method in settings
        ]

    def screening(self, method: str, combination: Combination) -> list[Cell]:
        """Return the cells that try one combination out.

        Raises:
            RecipeError: the settings make no recipe.
        """
        assert self.grid.choose is not None
        settings = {name: {**each.set, **combination} for name, each in self.grid.methods.items()}
        place = f"{SCREENING}/{_slug(self.grid.methods[method].set)}/{_slug(combination)}"
        return [self._cell(method, seed, settings, combination, place) for seed in self.grid.choose.seeds]

    def combinations(self) -> Iterator[Combination]:
        """Yield all combinations of the values to try."""
        if self.grid.choose:
            keys, values = zip(*self.grid.choose.vary.items(), strict=True)
            yield from (dict(zip(keys, each, strict=True)) for each in itertools.product(*values))

    def _cell(
        self, method: str, seed: int, settings: Mapping[str, Combination], tried: Combination | None, place: str
    ) -> Cell:
        grid = self.grid
        changes = {**grid.set, **settings[method]}
        where, decides = f"methods.{method}", grid.endpoint
        if tried is not None and grid.choose:
            where, decides = f"choose, for methods.{method}", grid.choose.by
            # A loss needs no samples; `choose.set` may ask for some all the same.
            changes |= ({"eval.benchmarks": []} if decides == HELDOUT else {}) | grid.choose.set
        tree = deepcopy(self.tree)
        for key, value in {**changes, "seed": seed}.items():
            set_key(tree, key, value)
        cell = Cell(
            method=method, row=grid.methods[method].row, seed=seed, changes=changes,
            recipe=parse_section(Recipe, tree, where=f"{grid.name}: {where}: {grid.recipe}"),
            folder=f"{place}/seed-{seed}", tried=tried,
        )  # fmt: skip
        check_cell(cell, decides, where)
        return cell


def check_cell(cell: Cell, decides: str, where: str) -> None:
    """Check that a cell's run has its row and scores what decides, whatever is missing.

    Raises:
        RecipeError: it does not.
    """
    recipe = cell.recipe
    rows = ["base", *(f"base-{style}" for style in recipe.eval.base_prompts), "sft", "moe", "uniform", "xft"]
    rows += [*recipe.merge.also, *(["soup"] if recipe.sft.soup > 1 else [])]
    if cell.row == "soup" and cell.row not in rows:
        raise RecipeError(f"{where}: the row soup averages SFT runs; set sft.soup to their number, 2 at least")
    if cell.row not in rows:
        raise RecipeError(
            f"{where}: a run has no row {cell.row!r}; rows: {', '.join(rows)}{did_you_mean(cell.row, rows)}"
        )
    scored = [HELDOUT, *(entry.name for entry in recipe.eval.benchmarks)]
    if decides not in scored:
        raise RecipeError(
            f"{where}: {decides} is to decide, but is not scored; scored: {', '.join(scored)}"
            f"{did_you_mean(decides, scored)}"
        )
    if any(entry.name == decides and entry.optional for entry in recipe.eval.benchmarks):
        raise RecipeError(
            f"{where}: {decides} is to decide, so it can't be optional as the recipe has it; "
            "list it without `optional` in eval.benchmarks, in the grid's own `set`"
        )


def said(value: Any) -> str:
    """Write a value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _slug(combination: Combination) -> str:
    """Return a folder's name for changes of the recipe, the same in every order."""
    text = ",".join(f"{key}={said(value)}" for key, value in sorted(combination.items())) or "recipe"
    plain = re.sub(r"[^\w.=,+-]", "_", text)[:100]
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
