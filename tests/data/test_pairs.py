"""The shipped pairs: they run, they are decontaminated, they are what the recipes expect."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from xft.data.overlap import load_fingerprints, tengrams
from xft.data.sources import resolve_files
from xft.eval.sandbox import Sandbox
from xft.recipe import DataSource

ROOT = Path(__file__).parents[2]
PAIRS = [
    json.loads(line)
    for line in resolve_files(DataSource(path="shipped:python"))[0].read_text(encoding="utf-8").splitlines()
]
FENCE = "```python\n"


def test_there_are_enough_and_no_two_ask_the_same() -> None:
    assert len(PAIRS) >= 300
    assert len({pair["instruction"] for pair in PAIRS}) == len({pair["id"] for pair in PAIRS}) == len(PAIRS)


def test_every_response_begins_with_its_code() -> None:
    assert all(pair["response"].startswith(FENCE) and pair["response"].count("```") == 2 for pair in PAIRS)


def test_no_pair_shares_ten_words_with_a_benchmark() -> None:
    known = load_fingerprints("humaneval") | load_fingerprints("mbpp")
    guilty = [
        pair["id"]
        for pair in PAIRS
        if tengrams("\n".join((pair["instruction"], pair["response"], pair["tests"]))) & known
    ]
    assert guilty == []


def test_the_fingerprints_find_what_they_are_made_of() -> None:
    # HumanEval/0's docstring, in other letter case and spacing; hashes only are shipped
    sentence = "check if in GIVEN list of numbers, are any   two numbers closer to each other than given threshold"
    assert tengrams(sentence) & load_fingerprints("humaneval")
    assert not tengrams(sentence.replace("two", "three")) & load_fingerprints("mbpp")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as opened:
        yield opened


@pytest.mark.parametrize("pair", PAIRS[::9], ids=lambda pair: pair["id"])
def test_a_sample_of_responses_passes_its_own_checks(pair: dict[str, str], sandbox: Sandbox) -> None:
    code = pair["response"].split(FENCE, 1)[1].split("\n```", 1)[0]
    outcome = sandbox.run(f"{code}\n{pair['tests']}\n", seconds=10, memory_mb=1024)
    assert outcome.status == "passed", outcome.error


@pytest.mark.slow
def test_every_response_passes_its_own_checks_and_an_empty_one_fails_them() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "check_pairs.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert f"{len(PAIRS)} pairs" in done.stdout
