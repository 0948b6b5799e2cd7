"""What the base is pre-trained on: Python's standard library, and generated functions with docstrings.

The functions are made of the known operations alone, and of combinations that training may see. A docstring tells the
steps in a few words, or in all but the last of the phrases that instructions have; there is no instruction among them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from experiments.miniature.operations import OPERATIONS
from experiments.miniature.programs import DEPTHS, NAMES, VARIABLES, draw_program

TERSE = 0.3
"""Share of docstrings of a few words."""
JOINTS = ("; ", ", then ", " and ")
KNOWN = [each for each in OPERATIONS.values() if each.known]


def library(licenses: tuple[str, ...] = ()) -> list[str]:
    """Return the source files of the running Python's standard library, without its tests."""
    from xft.synth.config import SeedSource
    from xft.synth.seeds import read_seeds

    documents, _ = read_seeds([SeedSource(path="stdlib")], licenses)
    return [document.text for document in documents]


def functions(seed: str) -> Iterator[str]:
    """Give documents without end, each of one to four functions."""
    number = 0
    while True:
        rng = random.Random(f"corpus/{seed}/{number}")
        yield "\n\n".join(draw_function(rng) for _ in range(rng.randint(1, 4)))
        number += 1


def draw_function(rng: random.Random) -> str:
    """Draw a function whose docstring tells its steps."""
    while True:
        program = draw_program(rng, DEPTHS, KNOWN)
        if program.split == "train":
            break
    style, terse = rng.randrange(3), rng.random() < TERSE
    said = [step.operation.doc if terse else rng.choice(step.operation.phrases[:-1]) for step in program.steps]
    doc = ("; " if terse else rng.choice(JOINTS)).join(
        words.format(k=step.k) for words, step in zip(said, program.steps, strict=True)
    )
    return program.code(rng.choice(NAMES), lambda kind: VARIABLES[kind][style], doc[0].upper() + doc[1:] + ".")
