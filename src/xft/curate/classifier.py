"""A quality classifier of users' own examples: logistic regression over hashed words and pairs of words.

This is fastText's model (arXiv 1607.01759: linear in the mean of n-gram vectors) with one weight an n-gram instead of a
vector, which for two classes can express the same decisions. A text's score is the mean of its n-grams' weights, so
length does not matter. Training is Adagrad over examples in a seeded order, in numpy, and repeats bit by bit. The model
is one safetensors file.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xft.curate.config import CurateSource, StepConfig
from xft.curate.read import plan_shards, read_shard
from xft.curate.step import step
from xft.data.example import Example
from xft.errors import DataError
from xft.recipe import DataSource, Section
from xft.stage import file_digest

TOKEN = re.compile(r"\w+|[^\w\s]")
SALT = np.uint64(0x9E3779B97F4A7C15)
MODEL_FILE = "classifier.safetensors"


class ClassifierOptions(Section):
    """A trained classifier and how sure it must be."""

    model: str
    """File that `xft curate classifier` wrote, or its folder."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Least probability of being like the positives."""


@step("classifier", ClassifierOptions)
def classifier(record: Example, options: ClassifierOptions) -> str | None:
    """Records that look more like the positives than like the negatives.

    Raises:
        DataError: the model can't be read.
    """
    weights, bias = _load(options.model)
    return None if probability(text_of(record), weights, bias) >= options.threshold else "low quality score"


def text_of(record: Example) -> str:
    """Return what the classifier reads of a record."""
    return f"{record.instruction}\n{record.response}".strip()


def features(text: str, buckets: int) -> NDArray[np.int64]:
    """Return the buckets of a text's words, and of its pairs of words."""
    words = np.array([zlib.crc32(word.encode("utf-8", "replace")) for word in TOKEN.findall(text.lower())], np.uint64)
    pairs = (words[:-1] * SALT + words[1:]) * SALT  # wraps around, as a hash may
    found: NDArray[np.int64] = (np.concatenate([words * SALT, pairs]) >> np.uint64(20)).astype(np.int64) % buckets
    return found


def probability(text: str, weights: NDArray[np.float32], bias: float) -> float:
    """Return the probability that a text is like the positives."""
    found = features(text, len(weights))
    score = bias + (float(weights[found].mean()) if len(found) else 0.0)
    return float(1 / (1 + np.exp(-np.clip(score, -30, 30))))


class TrainClassifierConfig(Section):
    """How a classifier is trained."""

    buckets: Annotated[int, Field(ge=256)] = 1 << 20
    """Weights; n-grams share them by hash."""
    epochs: Annotated[int, Field(ge=1)] = 5
    """Passes over the examples."""
    lr: Annotated[float, Field(gt=0)] = 1.0
    """Adagrad's step."""
    heldout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the examples, drawn by the seed, that the accuracy is measured on."""


def train_classifier(
    positives: Sequence[str], negatives: Sequence[str], config: TrainClassifierConfig, seed: int, out: Path
) -> dict[str, Any]:
    """Write `out`/classifier.safetensors; return its accuracy on held-out examples and the thresholds of shares kept.

    Raises:
        DataError: too few examples.
    """
    from safetensors.numpy import save_file

    texts = [*positives, *negatives]
    labels = np.array([1.0] * len(positives) + [0.0] * len(negatives))
    order = np.random.default_rng(seed).permutation(len(texts))
    held = max(2, int(config.heldout * len(texts)))
    train, test = order[held:], order[:held]
    if min(len(positives), len(negatives)) < 10 or len(set(labels[train])) < 2 or len(set(labels[test])) < 2:
        raise DataError(
            f"{len(positives)} positives and {len(negatives)} negatives are too few to learn from and measure on; "
            "give at least 10 of each, better thousands"
        )
    weights, bias = _fit(texts, labels, train, config, seed)
    save_file({"weights": weights, "bias": np.array([bias], np.float32)}, str(out / MODEL_FILE))
    scores = np.array([probability(texts[index], weights, bias) for index in test])
    right = float(((scores >= 0.5) == (labels[test] == 1)).mean())
    bad = np.sort(scores[labels[test] == 0])[::-1]
    return {
        "positives": len(positives),
        "negatives": len(negatives),
        "heldout": len(test),
        "accuracy": right,
        "auc": auc(scores, labels[test]),
        "threshold_for_share_of_negatives": {
            f"{share:.0%}": float(np.nextafter(bad[min(int(share * len(bad)), len(bad) - 1)], np.inf))
            for share in (0.01, 0.05, 0.1, 0.2)
        },
    }


def auc(scores: NDArray[np.float64], labels: NDArray[np.float64]) -> float:
    """Return the chance that a positive scores above a negative; ties count half."""
    good, bad = scores[labels == 1], np.sort(scores[labels == 0])
    below = np.searchsorted(bad, good, "left") + np.searchsorted(bad, good, "right")
    return float(below.mean() / 2 / len(bad))


def _fit(
    texts: Sequence[str],
    labels: NDArray[np.float64],
    train: NDArray[np.int64],
    config: TrainClassifierConfig,
    seed: int,
) -> tuple[NDArray[np.float32], float]:
    found = {int(index): np.unique(features(texts[index], config.buckets), return_counts=True) for index in train}
    weights, squares = np.zeros(config.buckets, np.float32), np.zeros(config.buckets, np.float32)
    bias, bias_square = 0.0, 0.0
    generator = np.random.default_rng(seed + 1)
    for _ in range(config.epochs):
        for index in generator.permutation(train):
            buckets, counts = found[int(index)]
            if not len(buckets):
                continue
            share = (counts / counts.sum()).astype(np.float32)
            score = np.clip(bias + float(weights[buckets] @ share), -30, 30)
            error = float(1 / (1 + np.exp(-score)) - labels[index])
            gradient = np.float32(error) * share
            squares[buckets] += gradient**2
            weights[buckets] -= np.float32(config.lr) * gradient / np.sqrt(squares[buckets] + np.float32(1e-10))
            bias_square += error**2
            bias -= 0.1 * config.lr * error / np.sqrt(bias_square + 1e-10)
    return weights, float(bias)


def read_texts(sources: Sequence[DataSource], kind: str) -> list[str]:
    """Return the texts of all readable records of some sources.

    Raises:
        DataError: a source that is not there.
    """
    given = [CurateSource(**source.model_dump()) for source in sources]
    items = (item for shard in plan_shards(given) for item in read_shard(shard, given[shard.source], kind))
    return [text_of(item) for item in items if isinstance(item, Example)]


def models_of(steps: Sequence[StepConfig] | None) -> dict[str, str]:
    """Return the digests of the models that steps read."""
    paths = [model_file(step.options["model"]) for step in steps or () if step.name == "classifier"]
    return {str(path): file_digest(path) for path in paths if path.is_file()}


def model_file(model: str) -> Path:
    """Return the file of a classifier that is given as file or folder."""
    return Path(model) / MODEL_FILE if Path(model).is_dir() else Path(model)


@lru_cache(maxsize=4)
def _load(model: str) -> tuple[NDArray[np.float32], float]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = model_file(model)
    try:
        tensors = load_file(str(path))
        return tensors["weights"], float(tensors["bias"][0])
    except (OSError, SafetensorError, KeyError, IndexError) as error:
        raise DataError(f"{path}: no classifier ({error}); train one with `xft curate classifier`") from None
