"""The commands that make data: curate, curate classifier."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from xft.cli import options
from xft.cli.options import Column, Data, DataDir, More, Out, Seed, Set

if TYPE_CHECKING:
    from xft.stage import Meter

SUBCOMMANDS = ("classifier",)
"""Second words of `xft curate`; an output folder of that name is given as ./classifier."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(curate)
    app.command("curate classifier")(classifier)


def curate(
    out: Out,
    more: More = None,
    data: Data = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML file with sources, steps, dedup, decontaminate, mix; defaults without it.")
    ] = None,
    kind: Annotated[
        Literal["pairs", "text"] | None, typer.Option(help="pairs (the default), or text for raw documents.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one for each core by default.")] = None,
    data_dir: DataDir = None,
    column: Column = None,
    seed: Seed = 42,
    allow_unsafe: Annotated[
        bool, typer.Option("--allow-unsafe", help="Run answers against benchmarks even where no sandbox works.")
    ] = False,
    settings: Set = None,
) -> None:
    """Clean, deduplicate, decontaminate and mix data; every record that is left out is listed with its reason.

    `xft curate classifier` trains a quality classifier for the step of that name.
    """
    from xft.curate.config import CurateConfig, parse_curate
    from xft.curate.contamination import benchmark_inputs
    from xft.curate.read import input_digests, plan_shards
    from xft.curate.run import CurateJob, files_of
    from xft.curate.run import curate as work_on
    from xft.recipe import apply_override, read_mapping

    options.use_data(data_dir)
    tree = read_mapping(recipe, CurateConfig) if recipe else {}
    if data:
        given = options.sources_of(data, more, column)
        tree["sources"] = [source.model_dump(exclude_defaults=True) for source in given]
    tree |= {"kind": kind} if kind else {}
    for setting in settings or []:
        apply_override(tree, setting)
    if "sources" not in tree:
        options.sources_of(None, None, None)  # says what to give
    config = parse_curate(tree, str(recipe) if recipe and not (data or settings) else "command line")
    cores = workers or os.cpu_count() or 1
    inputs = input_digests(plan_shards(config.sources))
    if config.decontaminate:
        inputs |= benchmark_inputs(config.decontaminate)
    inputs |= files_of(config)

    def work(partial: Path, _meter: Meter) -> None:
        work_on(CurateJob(config=config, out=partial, seed=seed, workers=cores, allow_unsafe=allow_unsafe))

    options.finish(out, "curate", config.model_dump(), inputs, work, seed)
    _show(out)


def _show(out: Path) -> None:
    """Print what each step did."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from xft.curate.card import counts
    from xft.curate.run import STATISTICS
    from xft.stage import read_json

    statistics = read_json(out / STATISTICS, {})
    table = Table("step", "looked at", "dropped", "reasons")
    for step in statistics["steps"]:
        table.add_row(step["step"], f"{step['in']:,}", f"{step['dropped']:,}", escape(counts(step["reasons"])))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    for path in statistics["unreadable_files"]:
        print(f"could not be read: {path}")
    written = statistics["written"]
    print(f"{written['records']:,} records of {statistics['read']:,} written, {written['tokens']:,} tokens: {out}")


def classifier(
    out: Out,
    positives: Annotated[list[str], typer.Option(help="Files of good records; repeatable.")],
    negatives: Annotated[list[str], typer.Option(help="Files of ordinary or bad records; repeatable.")],
    kind: Annotated[Literal["pairs", "text"], typer.Option(help="pairs, or text for raw documents.")] = "pairs",
    seed: Seed = 42,
    settings: Set = None,
) -> None:
    """Train a quality classifier on examples of what to keep and what not."""
    from xft.curate.classifier import TrainClassifierConfig, read_texts, train_classifier
    from xft.stage import write_json

    config = options.section(TrainClassifierConfig, settings)
    sources = {
        "positives": options.sources_of(positives, None, None),
        "negatives": options.sources_of(negatives, None, None),
    }
    inputs = {
        f"{side} {path}": digest for side, files in sources.items() for path, digest in options.digests(files).items()
    }

    def work(partial: Path, _meter: Meter) -> None:
        texts = {side: read_texts(files, kind) for side, files in sources.items()}
        report = train_classifier(texts["positives"], texts["negatives"], config, seed, partial)
        write_json(partial / "summary.json", report)
        print(f"accuracy {report['accuracy']:.3f}, AUC {report['auc']:.3f} on {report['heldout']} held-out records")

    options.finish(out, "classifier", config.model_dump() | {"kind": kind}, inputs, work, seed)
