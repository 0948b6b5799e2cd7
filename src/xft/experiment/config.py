"""The grid: every setting of an experiment in one typed schema. Imports no torch.

This file is the reference of the YAML: each field's type, range, default and meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from xft.errors import RecipeError, did_you_mean
from xft.recipe import Section, parse_override, parse_section, read_mapping

HELDOUT = "heldout"
"""What the held-out loss is called where a benchmark's name could stand."""
COMMON = ("data", "eval", "seed", "name")
"""Sections of the recipe that are the same for all methods: else their scores could not be paired."""


def _flat(value: Any) -> Any:
    """Write nested mappings as one, with keys divided by dots."""
    if not isinstance(value, dict):
        return value
    flat: dict[str, Any] = {}
    for key, part in value.items():
        inner = _flat(part) if isinstance(part, dict) and part else None
        flat |= {f"{key}.{name}": leaf for name, leaf in inner.items()} if inner else {str(key): part}
    return flat


Changes = Annotated[dict[str, Any], BeforeValidator(_flat)]
"""Keys of the recipe with other values: `tune.lr: 1.0e-3`, or nested."""
Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class Method(Section):
    """One line of the table: a row of a run, with some keys of the recipe changed."""

    row: str
    """The row of `xft run`'s table: base, sft, soup, moe, uniform, xft, or a method of merge.also."""
    set: Changes = Field(default={})
    """Keys of the recipe that differ."""


class Choose(Section):
    """Settings that are chosen for each method before the experiment proper."""

    vary: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], BeforeValidator(_flat), Field(min_length=1)]
    """Values to try of each key; all combinations are tried. Keys that a method does not heed cost it nothing."""
    seeds: Seeds
    """Seeds to try them with; none may be a seed of the experiment."""
    by: str = HELDOUT
    """What decides: `heldout`, the lowest loss; or a benchmark's name, the highest share of passed samples."""
    set: Changes = Field(default={})
    """Keys of the recipe that differ here, such as other problems."""


class Grid(Section):
    """A whole experiment."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name in the report."""
    recipe: str
    """A recipe file, relative to this one, or the name of a shipped recipe."""
    seeds: Seeds
    """Seeds of everything random; each method is made with each."""
    set: Changes = Field(default={})
    """Keys of the recipe that differ in all cells."""
    methods: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")], Method], Field(min_length=1)
    ]
    """What is compared, in the table's order."""
    baseline: str
    """The method that all others are compared with."""
    against: list[str] = Field(default=[])
    """Methods that all others are compared with too, by the endpoint."""
    endpoint: str = HELDOUT
    """What the experiment is decided by: `heldout`, or a benchmark's name."""
    choose: Choose | None = None
    """A screening, if some settings are to be chosen for each method."""
    keep: Literal["all", "scores"] = "all"
    """scores: delete the weights of a cell once no unfinished cell needs them."""

    @model_validator(mode="after")
    def _is_fair(self) -> Grid:
        for key, name in (("baseline", self.baseline), *(("against", name) for name in self.against)):
            if name not in self.methods:
                raise ValueError(
                    f"{key} must be one of the methods ({', '.join(self.methods)}), got {name!r}"
                    + did_you_mean(name, self.methods)
                )
        if len(set(self.against)) < len(self.against):
            raise ValueError("against: a method is there twice")
        if self.baseline in self.against:
            raise ValueError(f"against: {self.baseline} is the baseline, with which all are compared anyway")
        for where, seeds in (("seeds", self.seeds), ("choose.seeds", self.choose.seeds if self.choose else [])):
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"{where}: a seed is there twice")
        for name, method in self.methods.items():
            for key in method.set:
                if key.split(".")[0] in COMMON:
                    raise ValueError(
                        f"methods.{name}.set: {key} must be alike for all methods, or they can't be compared; "
                        "set it in the grid's own `set`"
                    )
        if self.choose:
            _check_screening(self, self.choose)
        if "seed" in self.set:
            raise ValueError("set: the seeds of an experiment are its key `seeds`; leave `seed` out")
        return self


def _check_screening(grid: Grid, choose: Choose) -> None:
    if both := sorted(set(grid.seeds) & set(choose.seeds)):
        raise ValueError(
            f"choose.seeds: {', '.join(map(str, both))} also decide the experiment; choose with other seeds"
        )
    for key in choose.vary:
        if key.split(".")[0] in COMMON:
            raise ValueError(f"choose.vary: {key} is no setting of a method")
        others = {f"methods.{name}": method.set for name, method in grid.methods.items()} | {"choose.set": choose.set}
        for where, changes in others.items():
            if any(_overlap(key, other) for other in changes):
                raise ValueError(f"choose.vary: {key} is set by {where}; leave it out in one of the two")
    if "seed" in choose.set:
        raise ValueError("choose.set: the seeds of a screening are its key `seeds`; leave `seed` out")


def _overlap(key: str, other: str) -> bool:
    """Return whether two keys change the same: they are one, or one is the other's section."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _refuse_lost(overrides: Mapping[str, Any], grid: Grid) -> None:
    """Refuse overrides that the grid would override in turn.

    Raises:
        RecipeError: one would be lost.
    """
    stronger = {f"methods.{name}.set": method.set for name, method in grid.methods.items()}
    if grid.choose:
        stronger |= {"choose.vary": grid.choose.vary, "choose.set": grid.choose.set}
    for where, changes in stronger.items():
        for key in overrides:
            if lost := [other for other in changes if _overlap(key, other)]:
                raise RecipeError(f"command line: {key} would be lost where {where} has {lost[0]}; change it there")


def load_grid(path: Path, overrides: list[str] | None = None) -> Grid:
    """Read a grid file; overrides change the recipe in all cells, as `set` does.

    Raises:
        RecipeError: no such file, not YAML, a key that is unknown, mistyped or out of range, or a lost override.
    """
    if not path.is_file():
        raise RecipeError(f"{path}: no such grid file; docs/experiments.md tells how to write one")
    tree = read_mapping(path, Grid)
    grid = parse_section(Grid, tree, where=str(path))
    given = dict(map(parse_override, overrides or []))
    _refuse_lost(given, grid)
    beside = path.parent / grid.recipe
    recipe = str(beside) if beside.is_file() else grid.recipe
    return parse_section(
        Grid, grid.model_dump() | {"set": grid.set | given, "recipe": recipe}, where=f"command line, for {path.name}"
    )
