"""Experts that differ from the start: the right channels, everywhere the same, with the statistics that they had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from xft.families import FAMILIES
from xft.moe.diversity import diversified
from xft.prove import prove
from xft.recipe import UpcycleConfig
from xft.upcycle import upcycle

FFN = 48


def upcycled(base: Path, out: Path, **options: object) -> Path:
    out.mkdir()
    upcycle(base, out, UpcycleConfig.model_validate({"experts": 4, "active": 3, **options}), seed=5)
    return out


def channels_that_changed(model_type: str, base: Path, mixture: Path, layer: int, expert: int) -> list[set[int]]:
    """For each tensor of the FFN that belongs to channels."""
    family, dense, mixed = FAMILIES[model_type], load_file(base / "model.safetensors"), load_file(
        mixture / "model.safetensors"
    )  # fmt: skip
    found = []
    for part in family.parts:
        name = f"{family.ffn(layer)}.{part.tensor}"
        if name not in dense or (part.place == len(family.inner) and part.tensor.endswith("bias")):
            continue
        moved = (mixed[f"{family.ffn(layer)}.experts.{part.stack}"][expert] != dense[name]).float()
        if part.place < len(family.inner):
            whole = moved.reshape(len(moved), -1).mean(1)
            found += [half for half in whole.split(FFN)]
        else:
            found.append(moved.mean(0))
    assert all(set(each.tolist()) <= {0.0, 1.0} for each in found), "a channel changes whole or not at all"
    return [set(each.nonzero().flatten().tolist()) for each in found]


@pytest.mark.parametrize("model_type", ["llama", "phi3", "starcoder2"])
def test_redrawn_channels_are_the_same_in_all_matrices_and_others_in_each_expert(
    model_type: str, dense_of: Callable[..., Path], tmp_path: Path
) -> None:
    base = dense_of(model_type)
    mixture = upcycled(base, tmp_path / "moe", redraw=0.25)
    by_expert = []
    for layer in range(2):
        for expert in range(3):
            first, *others = channels_that_changed(model_type, base, mixture, layer, expert)
            assert len(first) == FFN // 4
            assert all(other == first for other in others)
            by_expert.append(frozenset(first))
    assert len(set(by_expert)) == 6


def weight(seed: int) -> Tensor:
    return 0.3 + 0.5 * torch.randn(400, 300, generator=torch.Generator().manual_seed(seed))


def test_redrawn_weights_have_the_mean_and_deviation_of_those_they_replace() -> None:
    family = FAMILIES["llama"]
    original = weight(0)
    changed = diversified(original, family.parts[0], family, 400, redraw=0.5, noise=0.0, seed=(1, 2))
    moved = (changed != original).any(1)
    assert int(moved.sum()) == 200
    assert float(changed[moved].mean()) == pytest.approx(float(original[moved].mean()), abs=0.01)
    assert float(changed[moved].std()) == pytest.approx(float(original[moved].std()), rel=0.02)
    assert abs(float((changed[moved] * original[moved]).mean()) - 0.09) < 0.01  # nothing of the old ones is left


def test_gate_and_up_keep_their_own_mean_and_deviation_where_they_are_one_tensor() -> None:
    family = FAMILIES["phi3"]
    original = torch.cat([weight(0), 5.0 + 0.1 * weight(1)])
    changed = diversified(original, family.parts[0], family, 400, redraw=0.5, noise=0.0, seed=(1, 2))
    for before, after in zip(original.split(400), changed.split(400), strict=True):
        moved = (before != after).any(1)
        assert int(moved.sum()) == 200
        assert float(after[moved].mean()) == pytest.approx(float(before[moved].mean()), abs=0.01)
        assert float(after[moved].std()) == pytest.approx(float(before[moved].std()), rel=0.02)


def test_noise_is_in_units_of_the_matrix() -> None:
    family = FAMILIES["llama"]
    original = weight(1)
    changed = diversified(original, family.parts[2], family, 300, redraw=0.0, noise=0.1, seed=(1, 2))
    assert float((changed - original).std()) == pytest.approx(0.1 * float(original.std()), rel=0.02)
    again = diversified(original, family.parts[2], family, 300, redraw=0.0, noise=0.1, seed=(1, 2))
    other = diversified(original, family.parts[2], family, 300, redraw=0.0, noise=0.1, seed=(1, 3))
    assert torch.equal(changed, again)
    assert not torch.equal(changed, other)


def test_a_mixture_with_redrawn_channels_does_not_promise_to_equal_its_base(tiny_dense: Path, tmp_path: Path) -> None:
    proof = prove(tiny_dense, upcycled(tiny_dense, tmp_path / "moe", redraw=0.5))
    assert not proof.preserves_dense
    assert proof.divergence > 0.001
    assert prove(tiny_dense, upcycled(tiny_dense, tmp_path / "plain")).preserves_dense
