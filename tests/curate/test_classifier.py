"""The classifier learns what it is shown, repeats bit by bit, and is a file without code."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from xft.curate.classifier import MODEL_FILE, TrainClassifierConfig, auc, features, probability, train_classifier
from xft.errors import DataError

CONFIG = TrainClassifierConfig(buckets=1 << 12, heldout=0.2)


def texts(word: str, count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(["the", "a", "code", "it", word, "runs"], k=30)) for _ in range(count)]


def test_it_learns_and_repeats(tmp_path: Path) -> None:
    good, bad = texts("tested", 60, 1), texts("broken", 60, 2)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    report = train_classifier(good, bad, CONFIG, 3, tmp_path / "a")
    assert report["accuracy"] == 1.0 and report["auc"] == 1.0 and report["heldout"] == 24
    train_classifier(good, bad, CONFIG, 3, tmp_path / "b")
    assert (tmp_path / "a" / MODEL_FILE).read_bytes() == (tmp_path / "b" / MODEL_FILE).read_bytes()
    tensors = load_file(tmp_path / "a" / MODEL_FILE)
    new = probability(texts("tested", 1, 9)[0], tensors["weights"], float(tensors["bias"][0]))
    assert new > 0.9 > 0.1 > probability(texts("broken", 1, 9)[0], tensors["weights"], float(tensors["bias"][0]))


def test_thresholds_let_their_share_of_negatives_through(tmp_path: Path) -> None:
    good, bad = texts("tested", 1000, 1), [*texts("broken", 500, 2), *texts("tested", 500, 4)]
    report = train_classifier(good, bad, CONFIG, 3, tmp_path)
    tensors = load_file(tmp_path / MODEL_FILE)
    held = np.random.default_rng(3).permutation(2000)[: report["heldout"]]
    scores = [probability(bad[at - 1000], tensors["weights"], float(tensors["bias"][0])) for at in held if at >= 1000]
    for share, threshold in report["threshold_for_share_of_negatives"].items():
        let_through = sum(score >= threshold for score in scores) / len(scores)
        assert let_through <= float(share.rstrip("%")) / 100
        assert let_through > float(share.rstrip("%")) / 100 - 0.02


def test_it_learns_pairs_of_words(tmp_path: Path) -> None:
    """The same words in another order: single words can't tell them apart."""
    good = [f"{'alpha beta ' * (3 + n % 3)}{n}" for n in range(40)]
    bad = [f"{'alpha alpha beta beta ' * (2 + n % 2)}{n}" for n in range(40)]
    assert train_classifier(good, bad, CONFIG, 0, tmp_path)["auc"] > 0.9


def test_noise_is_not_learned(tmp_path: Path) -> None:
    report = train_classifier(texts("same", 200, 1), texts("same", 200, 2), CONFIG, 0, tmp_path)
    assert 0.25 < report["auc"] < 0.75


def test_too_few_examples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few to learn from"):
        train_classifier(["a"] * 3, ["b"] * 30, CONFIG, 0, tmp_path)


def test_auc_and_features() -> None:
    assert auc(np.array([0.9, 0.8, 0.1]), np.array([1, 1, 0])) == 1.0
    assert auc(np.array([0.5, 0.5]), np.array([1, 0])) == 0.5
    assert len(features("one two three", 100)) == 5
    assert len(features("", 100)) == 0
    assert probability("", np.zeros(4, np.float32), 0.0) == 0.5
