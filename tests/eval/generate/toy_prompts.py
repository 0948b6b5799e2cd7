"""A benchmark of five prompts that keeps what a model answers as it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xft.eval.benchmark import Problem, Request
from xft.eval.generate import Answer, Ask, Backend, Sampling, generate

STUBS = ("def a", "def bb(x):", "def c(x, y): # long", "def d", "x = 1\ndef e()")


class ToyPrompts:
    """Five stubs of different lengths; stop strings may differ by problem."""

    name = "toy"

    def __init__(self, stop: tuple[str, ...] = ("\n```",), stops: dict[str, tuple[str, ...]] | None = None) -> None:
        self.stop, self.stops = stop, stops or {}

    def problems(self) -> list[Problem]:
        return [Problem(task_id=f"T/{number}", stub=stub, entry_point="f") for number, stub in enumerate(STUBS)]

    def request(self, problem: Problem, style: str) -> Request:
        stop = self.stops.get(problem.task_id, self.stop)
        if style == "completion":
            return Request(instruction=None, prefix=problem.stub, stop=stop)
        return Request(instruction=problem.stub, prefix="```python\n", stop=stop)

    def extract(self, problem: Problem, completion: str, style: str) -> str:
        return f"<{style}>{completion}"


def answers(
    backend: Backend,
    out: Path,
    toy: ToyPrompts | None = None,
    *,
    problems: Sequence[Problem] | None = None,
    known: dict[Ask, Answer] | None = None,
    **how: Any,
) -> list[dict[str, Any]]:
    """Generate, and read samples.jsonl."""
    toy = toy or ToyPrompts()
    out.mkdir(exist_ok=True)
    sampling = Sampling(**{"max_new_tokens": 6, **how})
    generate(
        backend, toy, problems or toy.problems(), out,  # type: ignore[arg-type]
        sampling=sampling, known={} if known is None else known, label="t",
    )  # fmt: skip
    return [json.loads(line) for line in (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
