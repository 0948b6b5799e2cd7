"""Exact and near-duplicates: signatures by rensa, candidates by sorting LSH bands, clusters by union-find.

Each record has a key (a hash of its text) and a MinHash signature, cut into bands. Records that agree in a whole band
are candidates; they are duplicates when their signatures agree in the threshold's share of values. Of each cluster the
first record stays. The index is sorted one band after the other, so memory holds INDEX_BYTES for each record, whatever
the number of bands; signatures and bands lie on disk. Results do not depend on the order in which shards were made.
"""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xft.curate.config import DedupConfig
from xft.data.example import Example
from xft.errors import MissingExtraError

INDEX_BYTES = 64
"""Bytes of memory for each record at most: a band's keys, their order and both sorted, roots, what was found."""
SEED = 42
WORD = re.compile(r"\w+")
VERIFIED = 1 << 13
"""Candidates whose signatures are compared at a time."""
ODD = np.uint64(0xD6E8FEB86659FD93)

Keys = NDArray[np.uint64]
Indices = NDArray[np.int64]


def text_of(record: Example) -> str:
    """Return the text by which records are compared: lower case, words and single spaces."""
    return " ".join(WORD.findall(f"{record.instruction}\n{record.response}".lower()))


def exact_key(record: Example) -> int:
    """Return the hash of a record's text; white space and case do not count, but what stands between words does."""
    bare = "".join(f"{record.instruction}\0{record.response}".lower().split())
    return int.from_bytes(hashlib.blake2b(bare.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def shingles(text: str, words: int) -> list[str]:
    """Return the runs of so many words; all words together where they are fewer."""
    split = text.split(" ")
    return [" ".join(split[start : start + words]) for start in range(max(1, len(split) - words + 1))]


def signatures(texts: Sequence[str], config: DedupConfig) -> NDArray[np.uint32]:
    """Return the MinHash signature of each text, a row each.

    Raises:
        MissingExtraError: rensa is not installed.
    """
    if not texts:
        return np.zeros((0, config.permutations), np.uint32)
    sets = [shingles(text, config.words) for text in texts]
    rows = rensa().RMinHash.digests_from_token_sets(sets, num_perm=config.permutations, seed=SEED)
    return np.array(rows, np.uint32)


def rensa() -> Any:
    """Return the module rensa.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import rensa as module
    except ImportError:
        raise MissingExtraError("near-duplicates need rensa: pip install 'xft[data]'") from None
    return module


def band_keys(signed: NDArray[np.uint32], bands: int) -> Keys:
    """Return a hash of each band of each signature, a row for each record."""
    rows = signed.reshape(len(signed), bands, signed.shape[1] // bands).astype(np.uint64)
    keys = np.full(rows.shape[:2], ODD, np.uint64)
    for place in range(rows.shape[2]):
        keys = (keys ^ rows[:, :, place]) * ODD
        keys ^= keys >> np.uint64(31)
    return keys


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """What stays of each record's cluster."""

    original: Indices
    """Number of the record that stays: its own, or an earlier one's."""
    near: NDArray[np.bool_]
    """Whether it was found by similarity, not by equality."""


class Index:
    """Keys, bands and signatures of all records, on disk, in the records' order."""

    def __init__(self, folder: Path, config: DedupConfig) -> None:
        self.folder, self.config = folder, config
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Index:
        self.files = [(self.folder / name).open("wb") for name in self._names()]
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files:
            file.close()

    def _names(self) -> list[str]:
        bands = [f"band-{band:03d}" for band in range(self.config.bands)] if self.config.near else []
        return ["keys", *bands, *(["signatures"] if self.config.near else [])]

    def add(self, keys: Keys, signed: NDArray[np.uint32] | None) -> None:
        """Append records."""
        self.files[0].write(keys.tobytes())
        if signed is not None:
            for column, file in zip(band_keys(signed, self.config.bands).T, self.files[1:-1], strict=True):
                file.write(np.ascontiguousarray(column).tobytes())
            self.files[-1].write(signed.tobytes())

    def find(self) -> Duplicates:
        """Find all duplicates."""
        for file in self.files:
            file.flush()
        original = self._equal()
        exact = original != np.arange(len(original))
        if self.config.near:
            self._join(original, exact)
        return Duplicates(original=original, near=(original != np.arange(len(original))) & ~exact)

    def _equal(self) -> Indices:
        """Return for each record the first one with its key."""
        order, first = _groups(self.folder / "keys")
        original = np.arange(len(order))
        if self.config.exact:
            original[order] = order[first]
        return original

    def _join(self, original: Indices, exact: NDArray[np.bool_]) -> None:
        """Join near-duplicates to the first of their cluster; exact ones follow the record they equal."""
        roots = array("q", range(len(original)))
        with (self.folder / "signatures").open("rb") as signed:
            for band in range(self.config.bands):
                order, first = _groups(self.folder / f"band-{band:03d}")
                later = np.flatnonzero(first != np.arange(len(order)))
                for start in range(0, len(later), VERIFIED):
                    some = later[start : start + VERIFIED]
                    ends = np.concatenate([order[first[some]], order[some - 1]])  # the group's first, the one before
                    pairs = np.stack([ends, np.tile(order[some], 2)], axis=1)
                    self._join_pairs(roots, pairs[~exact[pairs].any(axis=1)], signed.fileno())
        for index in range(len(roots)):  # each root is smaller than what it is the root of, so it is final already
            roots[index] = roots[roots[index]]
        found = np.frombuffer(roots, np.int64)
        original[:] = found[original]

    def _join_pairs(self, roots: array[int], pairs: Indices, signed: int) -> None:
        now = np.frombuffer(roots, np.int64)[pairs]
        pairs = pairs[now[:, 0] != now[:, 1]]  # most candidates were joined in an earlier band
        wanted = [(a, b) for a, b in pairs.tolist() if _root(roots, a) != _root(roots, b)]
        if not wanted:
            return
        known, places = np.unique(np.array(wanted), return_inverse=True)
        width = 4 * self.config.permutations
        rows = np.frombuffer(b"".join(os.pread(signed, width, width * row) for row in known.tolist()), np.uint32)
        rows = rows.reshape(len(known), -1)
        places = places.reshape(-1, 2)
        alike = (rows[places[:, 0]] == rows[places[:, 1]]).mean(axis=1)
        for (a, b), similarity in zip(wanted, alike.tolist(), strict=True):
            if similarity >= self.config.threshold:
                one, other = sorted((_root(roots, a), _root(roots, b)))
                roots[other] = one


def _groups(path: Path) -> tuple[Indices, Indices]:
    """Return the records sorted by their key in a file, and for each place the place at which its group begins."""
    keys = np.fromfile(path, np.uint64)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    again = np.zeros(len(keys), bool)
    again[1:] = keys[1:] == keys[:-1]
    del keys
    first = np.arange(len(order))
    first[again] = 0
    np.maximum.accumulate(first, out=first)
    return order, first


def _root(roots: array[int], index: int) -> int:
    """Return the first record of a cluster, shortening the way to it."""
    while roots[index] != index:
        roots[index] = roots[roots[index]]
        index = roots[index]
    return index
