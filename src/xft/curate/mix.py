"""Which records are written, how often and in what order, when sources have weights, a budget or an order to draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from xft.curate.config import MixConfig
from xft.data.example import Example
from xft.errors import DataError, MissingExtraError

CHARACTERS = 4
"""Characters that count as one token where no tokenizer is given."""


def token_counter(config: MixConfig) -> Callable[[Example], int]:
    """Return the function that counts a record's tokens, at least 1.

    Raises:
        DataError: the tokenizer can't be read.
        MissingExtraError: the library tokenizers is not installed.
    """
    if config.tokenizer is None:
        return lambda record: max(1, (len(record.instruction) + len(record.response)) // CHARACTERS)
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingExtraError("mix.tokenizer needs tokenizers: pip install 'xft[train]'") from None
    try:
        tokenizer = Tokenizer.from_file(config.tokenizer)
    except Exception as error:  # the library raises nothing more special
        raise DataError(f"{config.tokenizer}: no tokenizer.json ({error})") from None
    return lambda record: max(1, len(tokenizer.encode(f"{record.instruction}\n{record.response}").ids))


def choose(
    tokens: NDArray[np.int64], sources: NDArray[np.int16], weights: Sequence[float], config: MixConfig, seed: int
) -> NDArray[np.int64]:
    """Return the numbers of the records to write, in order; one that is used twice stands there twice.

    Each source fills its share of the budget with its records in an order drawn by the seed, as often as
    `config.repeats` allows; the record that reaches the share is the last one. Without a budget it is the largest that
    the weights allow.
    """
    if config.weighted or config.tokens is not None:
        chosen = _by_weight(tokens, sources, weights, config, seed)
    else:
        chosen = np.arange(len(tokens))
    if config.shuffle:
        chosen = np.random.default_rng([seed, 0]).permutation(chosen)
    return chosen


def _by_weight(
    tokens: NDArray[np.int64], sources: NDArray[np.int16], weights: Sequence[float], config: MixConfig, seed: int
) -> NDArray[np.int64]:
    there = np.flatnonzero(np.bincount(sources, minlength=len(weights)))
    share = np.array(weights)[there] / np.array(weights)[there].sum()
    sizes = np.array([tokens[sources == source].sum() for source in there])
    budget = float((config.repeats * sizes / share).min()) if config.weighted else float(config.repeats * sizes.sum())
    if config.tokens is not None:
        budget = min(budget, config.tokens) if config.weighted else config.tokens
    wanted = share * budget if config.weighted else _filled(share, config.repeats * sizes, budget)
    parts = []
    for source, part in zip(there.tolist(), wanted.tolist(), strict=True):
        own = np.flatnonzero(sources == source)
        generator = np.random.default_rng([seed, 1 + source])
        order = np.concatenate([generator.permutation(own) for _ in range(config.repeats)])
        before = np.concatenate([[0], np.cumsum(tokens[order])[:-1]])
        parts.append(order[before < part])
    return np.sort(np.concatenate(parts), kind="stable")


def _filled(share: NDArray[np.float64], most: NDArray[np.int64], budget: float) -> NDArray[np.float64]:
    """Share out a budget; what a source is too small for goes to the others, by their shares."""
    full = np.zeros(len(share), dtype=bool)
    while True:
        left = max(budget - most[full].sum(), 0)
        wanted = np.where(full, most, left * share / max(share[~full].sum(), 1e-12))
        if not (wanted > most).any():
            return wanted
        full |= wanted > most
