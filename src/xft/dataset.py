"""The job `run` of a data recipe: seeds to pairs to one curated, mixed data set with its card, in one run directory.

seeds ─► synth ─┐
sources ────────┴─► curate
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from xft.curate.config import CurateConfig, CurateSource, Curation
from xft.recipe import Section, parse_section
from xft.synth.config import SeedSource, SynthConfig, TeacherConfig

if TYPE_CHECKING:
    from xft.stage import Meter

MADE = "synth/pairs.jsonl"
"""The pairs that were made, in a run directory."""


class DatasetRecipe(Section):
    """A whole data set."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name in reports."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of everything random."""
    seeds: list[SeedSource] = Field(min_length=1)
    """What pairs are made from."""
    teacher: TeacherConfig
    """Who makes them."""
    synth: SynthConfig = SynthConfig()
    """How they are made."""
    sources: list[CurateSource] = Field(default=[])
    """Pairs that are there already, to be curated and mixed with the made ones, whose weight is 1."""
    curate: Curation = Curation()
    """What is done with all of them."""


def run(
    recipe: DatasetRecipe, out: Path, *, redo: bool, confirm: Callable[[str], bool], say: Callable[[str], None]
) -> Path:
    """Bring a run directory up to date with a data recipe; return the data set's folder.

    Raises:
        RecipeError: two sources have one name, or are called `synth` as the made pairs are.
        RunError: another process is at it, `out` holds something else, or redoing needs the user's word.
        DataError: no seeds, or a source that is not there.
        MissingExtraError: a step of the curation needs a library that is not installed.
        FetchError: the teacher, or something from the hub, can't be had.
    """
    from xft.curate.contamination import benchmark_inputs
    from xft.curate.read import input_digests, plan_shards
    from xft.curate.run import CurateJob, curate, files_of, require_libraries
    from xft.fetch import cache_dir
    from xft.graph import Node, bring_up_to_date, run_folder
    from xft.synth.stage import open_stage, report

    settings = recipe.curate
    require_libraries(settings)
    sources = [source.model_dump() for source in recipe.sources]
    made = {"path": str(out / MADE), "name": "synth"}
    config = parse_section(CurateConfig, settings.model_dump() | {"sources": [made, *sources]}, recipe.name)

    def curated(folder: Path, _meter: Meter) -> None:
        curate(CurateJob(config=config, out=folder, seed=recipe.seed, workers=os.cpu_count() or 1))

    outside = input_digests(plan_shards(recipe.sources)) | files_of(settings)
    if settings.decontaminate:
        outside |= benchmark_inputs(settings.decontaminate)
    with run_folder(out):
        synth = open_stage(recipe.synth, recipe.seeds, recipe.teacher, recipe.seed, store=cache_dir() / "answers")
        nodes = [
            Node(name="synth", config=synth.config, after=(), outside=synth.inputs, work=synth.work),
            Node(
                name="curate", config=settings.model_dump() | {"sources": sources}, after=("synth",), outside=outside,
                work=curated,
            ),
        ]  # fmt: skip
        bring_up_to_date(nodes, out, recipe, redo=redo, confirm=confirm, say=say)
        synth.close()
        report(out / "synth", recipe.synth)
    return out / "curate"
