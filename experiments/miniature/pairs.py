"""Write the instruction pairs, and two disjoint sets of held-out problems with tests.

`python -m experiments.miniature.pairs OUT` writes `train.jsonl`, `problems-screen.jsonl` and `problems-confirm.jsonl`.
Ideas are tried on the first set of problems; what is claimed is measured on the second. Each record has its own random
numbers: a smaller file is the beginning of a larger one, and more noise spoils the same records and others.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.miniature.operations import OPERATIONS
from experiments.miniature.programs import (
    DEPTHS,
    NAMES,
    Program,
    agrees,
    draw_instruction,
    draw_program,
    near_miss,
    tests_of,
)

PROBLEM_DEPTHS = {depth: weight for depth, weight in DEPTHS.items() if depth > 1}
TRIES = 30
"""Near misses drawn for a pair before it is left out."""
Tests = list[tuple[Any, Any]]


def records(split: str, seed: int) -> Iterator[tuple[dict[str, Any], Program, Tests, random.Random]]:
    """Give the records of a split without end, no instruction twice, with their programs, tests and random numbers."""
    depths = DEPTHS if split == "train" else PROBLEM_DEPTHS
    said: set[str] = set()
    number = 0
    while True:
        rng = random.Random(f"{split}/{seed}/{number}")
        number += 1
        program = draw_program(rng, depths, list(OPERATIONS.values()))
        tests = tests_of(rng, program) if program.split == split else None
        if tests is None:
            continue
        name = rng.choice(NAMES)
        instruction = draw_instruction(rng, program, name)
        if instruction in said:
            continue
        said.add(instruction)
        yield {
            "instruction": instruction,
            "response": program.code(name),
            "steps": [step.operation.name for step in program.steps],
            "tests": [f"assert {name}({value!r}) == {answer!r}" for value, answer in tests],
        }, program, tests, rng  # fmt: skip


def training_pairs(size: int, noise: float, seed: int) -> list[dict[str, Any]]:
    """Return pairs; `noise` of them, rounded, have the response of a near miss, which fails the pair's tests."""
    pairs: list[dict[str, Any]] = []
    wrong: list[str] = []
    order: list[float] = []
    source = records("train", seed)
    while len(pairs) < size:
        record, program, tests, rng = next(source)
        others = (near_miss(rng, program) for _ in range(TRIES))
        other = next((each for each in others if each.split == "train" and not agrees(each, tests)), None)
        if other is None:
            continue
        order.append(rng.random())
        name = record["tests"][0].removeprefix("assert ").partition("(")[0]
        pairs.append({key: record[key] for key in ("instruction", "response", "steps")} | {"wrong": False})
        wrong.append(other.code(name))
    for number in sorted(range(size), key=order.__getitem__)[: round(noise * size)]:
        pairs[number] |= {"response": wrong[number], "wrong": True}
    return pairs


def problems(split: str, size: int, seed: int) -> list[dict[str, Any]]:
    """Return held-out problems of the split `screen` or `confirm`."""
    source = records(split, seed)
    return [next(source)[0] for _ in range(size)]


def write(out: Path, *, pairs: int, noise: float, held_out: int, seed: int) -> None:
    """Write the three files into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    made = {"train": training_pairs(pairs, noise, seed)}
    made |= {f"problems-{split}": problems(split, held_out, seed) for split in ("screen", "confirm")}
    for name, rows in made.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `write` to a command line."""
    parser.add_argument("--pairs", type=int, default=4000, help="training pairs")
    parser.add_argument("--noise", type=float, default=0.0, help="share of them with a wrong response")
    parser.add_argument("--problems", type=int, default=400, help="problems in each of the two sets")
    parser.add_argument("--seed", type=int, default=1)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    add_options(parser)
    given = parser.parse_args(arguments)
    write(given.out, pairs=given.pairs, noise=given.noise, held_out=given.problems, seed=given.seed)


if __name__ == "__main__":
    main()
