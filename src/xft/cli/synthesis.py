"""The command that makes data: synth."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xft.cli import options
from xft.cli.options import More, Out, Seed, Set
from xft.errors import DataError, MissingExtraError, RecipeError

if TYPE_CHECKING:
    from xft.stage import Meter
    from xft.synth.config import SeedSource

Seeds = Annotated[
    list[str] | None,
    typer.Option(
        "--seeds", metavar="PATH...", help="Files, folders, git repositories, JSONL, Parquet, or a hub data set."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(synth)


def synth(
    out: Out,
    more: More = None,
    seeds: Seeds = None,
    teacher: Annotated[
        str, typer.Option(help="A server's address (http://host:8000/v1), or a local model: folder, hub or pypi name.")
    ] = "",
    model: Annotated[str | None, typer.Option(help="The server's model; the first that it has by default.")] = None,
    method: Annotated[str, typer.Option(help="How pairs are made; an unknown name lists them.")] = "oss-instruct",
    pairs: Annotated[int, typer.Option(min=1, help="Pairs to keep.")] = 1000,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Tasks to begin at most, such as 50 for a trial that forecasts --pairs.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="Licence of seeds that carry none.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Files and folders left out, such as test or 'test_*'; repeatable.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column of the text in JSONL or Parquet seeds.")] = None,
    check: Annotated[
        str, typer.Option(help="Languages whose solutions are run: python,javascript; or off.")
    ] = "python",
    temperature: Annotated[float | None, typer.Option(min=0, help="Of new tasks; the method's own by default.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    batch: Annotated[int, typer.Option(min=1, help="Answers made, or requests sent, at once.")] = 16,
    backend: Annotated[str, typer.Option(help="What runs a local model: transformers or vllm.")] = "transformers",
    prompt: Annotated[str, typer.Option(help="Prompt style: auto, chat, magicoder or completion.")] = "auto",
    store: Annotated[
        Path | None, typer.Option(help="Folder of answers paid for; in the cache (XFT_CACHE) by default.")
    ] = None,
    seed: Seed = 42,
    allow_unsafe: Annotated[
        bool, typer.Option("--allow-unsafe", help="Run solutions even where no sandbox works.")
    ] = False,
    settings: Set = None,
) -> None:
    """Make instruction pairs: a teacher writes them from seeds, a sandbox runs them.

    A server's key is read from OPENAI_API_KEY.
    """
    from xft.synth.config import SynthConfig

    given: dict[str, Any] = {"method": method, "pairs": pairs, "limit": limit, "temperature": temperature}
    given |= {"max_new_tokens": max_new_tokens, "check": {"languages": check}}
    config = options.section(SynthConfig, settings, **given)
    sources = _sources(seeds, more, license=license, exclude=exclude or [], column=column)
    if not teacher:
        raise RecipeError("no teacher; give --teacher with a server's address, or a local model's folder or name")
    if not teacher.startswith(("http://", "https://")):
        options.need_training()
    from contextlib import ExitStack

    from xft.eval.sandbox import Sandbox
    from xft.fetch import cache_dir
    from xft.stage import read_json
    from xft.synth.check import Bench
    from xft.synth.methods import METHODS
    from xft.synth.seeds import read_seeds, seeds_digest
    from xft.synth.statistics import summary
    from xft.synth.store import Store
    from xft.synth.synth import STATISTICS, SynthJob, synthesise
    from xft.synth.teacher import open_teacher
    from xft.synth.testing import TESTINGS

    checked = METHODS[config.method].checked and bool(config.check.languages)
    for language in config.check.languages:
        if fault := TESTINGS[language].fault():
            raise MissingExtraError(f"--check {language}: {fault}")
    documents, skipped = read_seeds(sources, config.licenses)
    folder = store or cache_dir() / "answers"
    asked = open_teacher(teacher, model=model, style=prompt, batch=batch, backend=backend, store=folder)

    def work(partial: Path, meter: Meter) -> None:
        with ExitStack() as stack:
            bench = None
            if checked:
                sandbox = stack.enter_context(Sandbox(libraries=config.check.libraries, allow_unsafe=allow_unsafe))
                bench = Bench(runner=sandbox, level=sandbox.level, config=config.check, store=Store(folder))
            job = SynthJob(
                config=config, seed=seed, documents=documents, skipped=skipped, teacher=asked, bench=bench, batch=batch
            )
            synthesise(job, partial)
        meter.extra = {"teacher": {"name": asked.name, **asked.backend.settings()}}

    inputs = {"seeds": seeds_digest(documents), "teacher": Store.key(**asked.identity)}
    made = config.model_dump() | {"prompt": asked.style, "batch": batch}
    options.finish(out, "synth", made, inputs, work, seed)
    asked.backend.close()
    figures: dict[str, Any] = read_json(out / STATISTICS, {})
    print(summary(figures))
    if figures["pairs"] < pairs and not limit:
        why = "ten tasks for each pair were begun" if figures["tasks"] >= config.attempts else "the seeds are used up"
        print(f"{out}: fewer pairs than asked for: {why}", file=sys.stderr)


def _sources(seeds: list[str] | None, more: list[str] | None, **given: Any) -> list[SeedSource]:
    """Return the sources of `--seeds PATH...`, with what is given for all of them."""
    from xft.recipe import parse_section
    from xft.synth.config import SeedSource

    if not seeds:
        raise DataError(
            "no seeds; give --seeds with files, folders, git repositories, JSONL, Parquet or a hub data set"
        )
    return [parse_section(SeedSource, {"path": path, **given}, "--seeds") for path in [*seeds, *(more or [])]]
