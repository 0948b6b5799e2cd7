"""What the commands share: option types, and the way from options to settings, data and folders."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xft.errors import DataError, RecipeError, RunError

if TYPE_CHECKING:
    from xft.recipe import DataSource
    from xft.stage import Meter

Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; the same command goes on in it.")]
Data = Annotated[
    list[str] | None, typer.Option("--data", metavar="FILE...", help="JSONL, JSON or Parquet files, or a hub data set.")
]
More = Annotated[
    list[str] | None, typer.Argument(metavar="FILE", help="The further files of --data.", show_default=False)
]
Column = Annotated[
    list[str] | None, typer.Option(help="Which column is which, such as instruction=prompt; repeatable.")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Write malformed records to OUT/rejects.jsonl and go on.")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder of the benchmarks' files; XFT_DATA by default, else the hub.")
]
Prompt = Annotated[str, typer.Option(help="Prompt style: auto, chat or magicoder.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other key of the recipe's section; repeatable."),
]


def section(schema: Any, settings: list[str] | None, **values: Any) -> Any:
    """Check options against a section of the recipe's schema."""
    from xft.recipe import apply_override, parse_section

    for setting in settings or []:
        key, equals, _ = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set {setting}: has the form key=value")
        if key in values:
            raise RecipeError(f"--set {setting}: this command has the option --{key.replace('_', '-')} for it")
        apply_override(values, setting)
    return parse_section(schema, values, "command line")


def use_data(folder: Path | None) -> None:
    """Let benchmarks read their data from the folder of --data-dir, if one is given."""
    if folder and not folder.is_dir():
        raise DataError(f"{folder}: no such folder; --data-dir is the folder of the benchmarks' files")
    if folder:
        os.environ["XFT_DATA"] = str(folder)


def sources_of(data: list[str] | None, more: list[str] | None, column: list[str] | None) -> list[DataSource]:
    """Return the data sources of `--data FILE...`."""
    from xft.recipe import DataSource, parse_section

    if not data:
        raise DataError("no data; give --data FILE (JSONL, JSON or Parquet), a hub data set or shipped:python")
    for pair in column or []:
        if not all(pair.partition("=")):
            raise RecipeError(f"--column {pair}: has the form field=name, such as instruction=prompt")
    columns = dict(pair.partition("=")[::2] for pair in column or [])
    return [parse_section(DataSource, {"path": path, "columns": columns}, "--data") for path in [*data, *(more or [])]]


def read_as(sources: list[DataSource]) -> list[dict[str, Any]]:
    """Return which sources are read, in which order and by which columns, wherever they lie."""
    from xft.data.sources import source_name

    return [source.model_dump(exclude={"path"}) | {"name": source_name(source)} for source in sources]


def digests(sources: list[DataSource]) -> dict[str, str]:
    """Return the digest of each source's content."""
    if not sources:
        return {}
    from xft.data.prepare import sources_digest
    from xft.recipe import DataConfig

    return sources_digest(DataConfig(sources=sources))


def write_data(sources: list[DataSource], skip_bad: bool, folder: Path) -> Path:
    """Read all pairs into one file in a partial folder."""
    from xft.data.prepare import write_pairs
    from xft.recipe import DataConfig

    return write_pairs(DataConfig(sources=sources, skip_bad=skip_bad), folder)


def style_of(prompt: str, model: Path) -> str:
    """Name the prompt style to use with a model."""
    from xft.checkpoint import Checkpoint
    from xft.prompts import resolve_prompt, tokenizer_of

    Checkpoint(model)  # a clear error for a folder that holds no whole model
    return resolve_prompt(prompt, tokenizer_of(model))


def need_training() -> None:
    """Check for the training extra."""
    import importlib.util

    from xft.errors import MissingExtraError

    missing = [name for name in ("torch", "transformers", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"this command needs {', '.join(missing)}: pip install 'xft[train]'")


def finish(
    out: Path,
    name: str,
    config: dict[str, Any],
    inputs: dict[str, str],
    work: Callable[[Path, Meter], None],
    seed: int | None,
) -> None:
    """Make a folder as a stage of its own."""
    from xft.progress import clock
    from xft.stage import Stage, read_manifest, run_stage

    if out.name in ("", ".."):  # it is made beside its place, and gets its name when it is whole
        raise RunError(f"{out}: give the name of a folder to make")

    stage = Stage(name=name, config=config, inputs=inputs, work=work, seed=seed)
    before = (read_manifest(out) or {}).get("key") == stage.key
    manifest = run_stage(out, stage)
    cost = f"{clock(manifest['wall_seconds'])}, peak memory {manifest['peak_memory_bytes'] / 1e9:.1f} GB"
    print(f"{out}: done before, in {cost}" if before else f"{out}: {cost}")
