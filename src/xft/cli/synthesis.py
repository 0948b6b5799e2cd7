"""The command that makes data: synth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xft.cli import options
from xft.cli.options import More, Out, Seed, Set
from xft.errors import DataError, RecipeError

if TYPE_CHECKING:
    from xft.synth.config import SeedSource

Seeds = Annotated[
    list[str] | None,
    typer.Option(
        "--seeds",
        metavar="PATH...",
        help="Files, folders, git repositories, JSONL, Parquet, a hub data set, or stdlib.",
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
    from xft.synth.config import SynthConfig, TeacherConfig

    given: dict[str, Any] = {"method": method, "pairs": pairs, "limit": limit, "temperature": temperature}
    given |= {"max_new_tokens": max_new_tokens, "check": {"languages": check}}
    config = options.section(SynthConfig, settings, **given)
    sources = _sources(seeds, more, license=license, exclude=exclude or [], column=column)
    if not teacher:
        raise RecipeError("no teacher; give --teacher with a server's address, or a local model's folder or name")
    who = TeacherConfig(name=teacher, model=model, prompt=prompt, backend=backend, batch=batch)
    if who.local:
        options.need_training()
    from xft.fetch import cache_dir
    from xft.synth.stage import open_stage, report

    stage = open_stage(config, sources, who, seed, store=store or cache_dir() / "answers", allow_unsafe=allow_unsafe)
    options.finish(out, "synth", stage.config, stage.inputs, stage.work, seed)
    stage.close()
    report(out, config)


def _sources(seeds: list[str] | None, more: list[str] | None, **given: Any) -> list[SeedSource]:
    """Return the sources of `--seeds PATH...`, with what is given for all of them."""
    from xft.recipe import parse_section
    from xft.synth.config import SeedSource

    if not seeds:
        raise DataError(
            "no seeds; give --seeds with files, folders, git repositories, JSONL, Parquet or a hub data set"
        )
    return [parse_section(SeedSource, {"path": path, **given}, "--seeds") for path in [*seeds, *(more or [])]]
