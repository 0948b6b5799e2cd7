"""The stage `eval`: score one model on benchmarks and on held-out responses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xft.eval.benchmarks import BENCHMARKS
from xft.eval.sandbox import Sandbox
from xft.eval.score import score
from xft.memory import keep_heap_warm
from xft.progress import track
from xft.recipe import EvalConfig
from xft.stage import Meter, file_digest


@dataclass(frozen=True, kw_only=True)
class EvalJob:
    """All that scoring a model needs."""

    model: Path
    out: Path
    style: str
    """A prompt style, `completion` for plain continuation, or `auto`."""
    config: EvalConfig
    heldout: Path | None
    """Prepared pairs for the held-out loss."""
    label: str
    allow_unsafe: bool = False


def evaluate(job: EvalJob, meter: Meter) -> None:
    """Write BENCH/{samples,verdicts}.jsonl, BENCH/scores.json and heldout/ into the job's folder.

    Raises:
        SandboxError: nothing here can confine a candidate.
    """
    benchmarks = [(entry, BENCHMARKS[entry.name]) for entry in job.config.benchmarks]
    selected = [(benchmark, list(benchmark.problems())[:: entry.every]) for entry, benchmark in benchmarks]
    sandbox = Sandbox(allow_unsafe=job.allow_unsafe)

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from xft.checkpoint import Checkpoint
    from xft.device import compute_dtype, describe_device, device
    from xft.eval.generate import generate
    from xft.eval.heldout import heldout_losses
    from xft.prompts import resolve_prompt
    from xft.tune.tune import quiet

    quiet()
    keep_heap_warm()
    Checkpoint(job.model)  # a clear error for a folder that holds no whole model
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    style = job.style if job.style == "completion" else resolve_prompt(job.style, tokenizer)
    dtype = compute_dtype("auto")
    model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype)
    model.to(device()).eval()
    meter.device, meter.dtype = describe_device(), str(dtype).removeprefix("torch.")
    if job.heldout and style != "completion":
        (job.out / "heldout").mkdir(exist_ok=True)
        heldout_losses(
            model, tokenizer, job.heldout, job.out / "heldout", style=style, label=f"{job.label}: held-out loss"
        )
    for benchmark, problems in selected:
        folder = job.out / benchmark.name
        folder.mkdir(exist_ok=True)
        generate(
            model, tokenizer, benchmark, problems, folder, style=style, label=f"{job.label}: {benchmark.name} answers",
            max_new_tokens=job.config.max_new_tokens, batch=job.config.batch,
        )  # fmt: skip
    del model
    for benchmark, problems in selected:
        folder = job.out / benchmark.name
        meta = {
            "prompt": style, "stop": list(benchmark.request(problems[0], style).stop), "decoding": "greedy",
            "max_new_tokens": job.config.max_new_tokens, "batch": job.config.batch, "padding": "left",
            "dtype": meter.dtype, "device": meter.device, "model": str(job.model),
            "model_config_sha256": file_digest(job.model / "config.json"), "sandbox_reason": sandbox.reason,
        }  # fmt: skip
        with track(f"{job.label}: {benchmark.name} verdicts", len(problems)) as advance:
            score(
                benchmark, folder / "samples.jsonl", folder, sandbox=sandbox, meta=meta, progress=lambda *_: advance(1)
            )
