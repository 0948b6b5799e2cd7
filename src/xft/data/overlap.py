"""Overlap with benchmarks by hashed 10-grams of words: the hashes are shipped, the benchmarks' text is not."""

from __future__ import annotations

import hashlib
import re
from importlib import resources

import numpy as np

WORDS = 10
_WORD = re.compile(r"[a-z0-9_]+")


def tengrams(text: str) -> set[int]:
    """Return the 64-bit hashes of all runs of ten consecutive words, lowercased."""
    words = _WORD.findall(text.lower())
    runs = (" ".join(words[start : start + WORDS]) for start in range(len(words) - WORDS + 1))
    return {int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "little") for run in runs}


def load_fingerprints(benchmark: str) -> frozenset[int]:
    """Return the shipped hashes of `humaneval` (prompts, solutions, tests) or `mbpp` (texts, code, tests)."""
    path = resources.files("xft") / "data" / "fingerprints" / f"{benchmark}.u64"
    return frozenset(np.frombuffer(path.read_bytes(), dtype="<u8").tolist())
