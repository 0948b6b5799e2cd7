"""Deduplication against brute force, and the memory that it promises."""

from __future__ import annotations

import itertools
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from xft.curate.config import DedupConfig
from xft.curate.dedup import INDEX_BYTES, Index, exact_key, shingles, signatures, text_of
from xft.data.example import Example

pytest.importorskip("rensa")


def example(response: str) -> Example:
    return Example(instruction="Do it.", response=response)


def find(records: list[Example], tmp_path: Path, config: DedupConfig, batch: int = 7) -> tuple[list[int], list[bool]]:
    with Index(tmp_path / "index", config) as index:
        for start in range(0, len(records), batch):
            some = records[start : start + batch]
            signed = signatures([text_of(record) for record in some], config) if config.near else None
            index.add(np.array([exact_key(record) for record in some], np.uint64), signed)
        found = index.find()
    return found.original.tolist(), found.near.tolist()


def variants(seed: int) -> list[Example]:
    """Texts of 60 words, each followed by a few that differ in some words."""
    chance = random.Random(seed)
    records = []
    for _ in range(12):
        words = [f"w{chance.randrange(5000)}" for _ in range(60)]
        for changes in (0, 0, 1, 12, 20):
            other = list(words)
            for place in chance.sample(range(60), changes):
                other[place] = f"w{chance.randrange(5000)}"
            records.append(example(" ".join(other)))
    chance.shuffle(records)
    return records


def jaccard(one: Example, other: Example, words: int) -> float:
    a, b = (set(shingles(text_of(each), words)) for each in (one, other))
    return len(a & b) / len(a | b)


def test_near_duplicates_are_those_of_brute_force(tmp_path: Path) -> None:
    config = DedupConfig(threshold=0.6, permutations=256, bands=64)  # finds nearly all candidates
    records = variants(1)
    original, near = find(records, tmp_path, config)
    expected = list(range(len(records)))
    doubtful = set()
    for a, b in itertools.combinations(range(len(records)), 2):
        similarity = jaccard(records[a], records[b], config.words)
        if abs(similarity - 0.6) < 0.15:
            doubtful |= {a, b}
        elif similarity > 0.6:
            low, high = sorted((expected[a], expected[b]))
            expected = [low if each == high else each for each in expected]
    sure = [index for index in range(len(records)) if index not in doubtful]
    assert len(sure) > 0.9 * len(records)
    assert [original[index] for index in sure] == [expected[index] for index in sure]
    equal = {exact_key(record) for record in records}
    assert len(equal) == len(records) - 12  # each text stood there twice
    assert sum(each != index for index, each in enumerate(original)) - sum(near) == 12


def test_first_record_of_a_cluster_stays_and_is_kept(tmp_path: Path) -> None:
    original, _ = find(variants(2), tmp_path, DedupConfig())
    for index, each in enumerate(original):
        assert each <= index
        assert original[each] == each


def test_batches_do_not_matter(tmp_path: Path) -> None:
    records = variants(3)
    config = DedupConfig()
    assert find(records, tmp_path / "a", config, 1) == find(records, tmp_path / "b", config, 1000)


def test_exact_ignores_case_and_white_space_only(tmp_path: Path) -> None:
    records = [example(text) for text in ("a b + c", "A  B\n+ c", "a b - c", "a b")]
    assert find(records, tmp_path, DedupConfig(near=False))[0] == [0, 0, 2, 3]


def test_short_texts_are_compared_whole(tmp_path: Path) -> None:
    records = [Example(instruction="", response=text) for text in ("one two", "One, two!", "one three", "")]
    assert find(records, tmp_path, DedupConfig(exact=False))[0] == [0, 0, 2, 3]


def test_nothing_to_do(tmp_path: Path) -> None:
    assert find([], tmp_path, DedupConfig()) == ([], [])


def peak_of(folder: Path, count: int, alike: bool) -> int:
    """Return the peak of memory while duplicates are found; of records that are alike only two stay."""
    generator = np.random.default_rng(0)
    with Index(folder, DedupConfig(permutations=8, bands=2)) as index:
        for start in range(0, count, 1000):
            signed = generator.integers(0, 2**32, (1000, 8), np.uint32)
            if alike:
                signed[:] = generator.integers(0, 2, (1000, 1), np.uint32)
            index.add(np.arange(start, start + 1000, dtype=np.uint64), signed)
        tracemalloc.start()
        try:
            original = index.find().original
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert len(np.unique(original)) == (2 if alike else count)
    return peak


@pytest.mark.parametrize("alike", [False, True])
def test_memory_is_bounded_for_each_record(tmp_path: Path, alike: bool) -> None:
    few, many = 10_000, 25_000
    grown = (peak_of(tmp_path / "many", many, alike) - peak_of(tmp_path / "few", few, alike)) / (many - few)
    print(f"{grown:.0f} bytes a record")
    assert grown <= INDEX_BYTES
