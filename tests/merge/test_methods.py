from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from xft.errors import RecipeError, UnknownNameError
from xft.merge.combine import Options, linear
from xft.merge.methods import (
    MERGE_METHODS,
    Coefficients,
    MergeMethod,
    equal_coefficients,
    refuse_unheeded,
    save_coefficients,
)
from xft.moe.layouts import Piece
from xft.recipe import MergeConfig

WEIGHTS = [None, 0.0, 0.3, 0.75, 1.0]


def median(experts_E: Sequence[Tensor], base: Tensor, weights_E: Tensor, options: Options) -> Tensor:
    """A newcomer's method: every expert has a voice, whatever it weighs."""
    return base + torch.stack([expert - base for expert in experts_E]).median(0).values


@pytest.fixture(params=[*sorted(MERGE_METHODS), "a newcomer's"])
def method(request: Any) -> Iterator[MergeMethod]:
    if request.param in MERGE_METHODS:
        yield MERGE_METHODS[request.param]
        return
    MERGE_METHODS.register(request.param)(
        MergeMethod(weights="equal", differences=median, shared_weight=False, selects=False)
    )
    yield MERGE_METHODS[request.param]
    del MERGE_METHODS[request.param]


def whole(experts: int) -> Piece:
    """All of a matrix, of which there are so many versions."""
    return Piece(experts=[torch.empty(0)] * experts)


def some_weights(shared_weight: float | None, seed: int = 3, experts: int = 5) -> Tensor:
    routed = experts - (shared_weight is not None)
    shares_LPR = torch.randn(1, 1, routed, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    shared_LP = None if shared_weight is None else torch.tensor([[shared_weight]])
    return Coefficients(shares_LPR, shared_LP).of(0, 0, whole(experts))


def merged(method: MergeMethod, experts_E: list[Tensor], base: Tensor, weights_E: Tensor, options: Options) -> Tensor:
    if method.differences is None:
        return linear(experts_E, weights_E)
    return method.differences(experts_E, base, weights_E, options)


def matrix(seed: int) -> Tensor:
    return torch.randn(16, 24, generator=torch.Generator().manual_seed(seed))


def test_settings_that_no_chosen_method_heeds_are_refused(method: MergeMethod) -> None:
    name = next(name for name, entry in MERGE_METHODS.items() if entry is method)
    others = {"shared_weight": 0.5, "epochs": 2, "lr": 0.1, "per": "matrix", "loss": "mixture", "prior": 0.5,
              "learn_shared_weight": True, "density": 0.3, "scale": 2.0}  # fmt: skip
    assert set(others) | {"also"} == set(MergeConfig.model_fields)
    for key, value in others.items():
        config = MergeConfig.model_construct(**{key: value})  # the schema would not have prior alone
        if key in method.heeded:
            refuse_unheeded(config, [name])
            continue
        with pytest.raises(RecipeError, match=f"^{key}={value} is for .*; {name} would ignore it"):
            refuse_unheeded(config, [name])
        user = next(other for other, entry in MERGE_METHODS.items() if key in entry.heeded)
        refuse_unheeded(config, [name, user])


def test_each_option_is_a_setting_that_changes_the_result(method: MergeMethod) -> None:
    assert set(method.options) <= set(MergeConfig.model_fields) - {"shared_weight"}  # which has a field of its own
    if method.differences is None:
        assert not {"density", "scale"} & set(method.options)
        return
    experts, weights_E = [matrix(seed) for seed in range(5)], some_weights(0.3)
    plain = merged(method, experts, matrix(9), weights_E, Options(density=0.5, scale=1.0))
    for key in ("density", "scale"):
        other = merged(method, experts, matrix(9), weights_E, replace(Options(density=0.5, scale=1.0), **{key: 0.8}))
        assert torch.equal(plain, other) != (key in method.options), key


@pytest.mark.parametrize("shared_weight", WEIGHTS)
def test_weights_sum_to_one_and_the_shared_one_comes_first(shared_weight: float | None) -> None:
    weights_E = some_weights(shared_weight)
    assert len(weights_E) == 5
    assert float(weights_E.sum()) == pytest.approx(1)
    if shared_weight is not None:
        assert float(weights_E[0]) == pytest.approx(shared_weight)


@pytest.mark.parametrize("shared_weight", WEIGHTS)
def test_identical_experts_give_the_expert(method: MergeMethod, shared_weight: float | None) -> None:
    expert, weights_E = matrix(1), some_weights(shared_weight)
    found = merged(method, [expert] * 5, matrix(2), weights_E, Options(density=1.0))
    # A few roundings of half a unit in the last place, of values up to the differences' size
    torch.testing.assert_close(found, expert, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_experts_that_never_left_the_base_give_the_base(method: MergeMethod, density: float) -> None:
    base, weights_E = matrix(2), some_weights(0.75)
    found = merged(method, [base] * 5, base, weights_E, Options(density=density, scale=0.7))
    torch.testing.assert_close(found, base, rtol=7 * 2**-24, atol=0)


def test_the_shared_weight_changes_the_result_where_it_is_heeded(method: MergeMethod) -> None:
    experts, base = [matrix(seed) for seed in range(5)], matrix(9)
    low, high = (merged(method, experts, base, some_weights(weight), Options(density=1.0)) for weight in (0.3, 0.8))
    assert torch.equal(low, high) != method.shared_weight


@pytest.mark.parametrize("chosen", range(5))
def test_one_hot_weights_give_that_expert_if_the_method_selects(method: MergeMethod, chosen: int) -> None:
    experts_E, weights_E = [matrix(seed) for seed in range(5)], torch.zeros(5)
    weights_E[chosen] = 1.0
    found = merged(method, experts_E, matrix(9), weights_E, Options(density=1.0))
    if not method.selects:
        assert not torch.allclose(found, experts_E[chosen], rtol=1e-2)  # else the entry claims less than it gives
        return
    if method.differences is None:
        assert torch.equal(found, experts_E[chosen])
    torch.testing.assert_close(found, experts_E[chosen], rtol=1e-6, atol=1e-6)


def test_equal_experts_with_exact_weights_are_given_back_bit_for_bit() -> None:
    expert = matrix(1).bfloat16().float()  # every product and sum fits fp32
    assert torch.equal(linear([expert] * 4, torch.tensor([0.75, 0.125, 0.0625, 0.0625])), expert)


def test_each_matrix_has_its_own_weights_where_they_are_not_the_layers() -> None:
    shares_LPR = torch.rand(2, 3, 4).softmax(-1)
    shared_LP = torch.rand(2, 3)
    matrices = Coefficients(shares_LPR, shared_LP)
    torch.testing.assert_close(matrices.of(1, 2, whole(5))[1:], (1 - shared_LP[1, 2]) * shares_LPR[1, 2])
    layers = Coefficients(shares_LPR[:, :1], shared_LP[:, :1])
    assert all(torch.equal(layers.of(1, projection, whole(5)), matrices.of(1, 0, whole(5))) for projection in range(3))


@pytest.mark.parametrize(("layers", "routed"), [(1, 1), (3, 1), (24, 7)])
def test_equal_coefficients_are_equal(layers: int, routed: int) -> None:
    coefficients = equal_coefficients(layers, routed, 0.75)
    for layer in range(layers):
        weights_E = coefficients.of(layer, 0, whole(1 + routed))
        torch.testing.assert_close(weights_E, torch.tensor([0.75, *[0.25 / routed] * routed]))
    assert len(equal_coefficients(layers, routed, None).of(0, 0, whole(routed))) == routed


def test_saved_coefficients_are_a_row_for_each_set(tmp_path: Path) -> None:
    shares_LPR, shared_LP = torch.rand(2, 3, 4).softmax(-1), torch.rand(2, 3)
    save_coefficients(tmp_path / "c.safetensors", Coefficients(shares_LPR, shared_LP))
    saved = load_file(tmp_path / "c.safetensors")
    assert torch.equal(saved["coefficients"][3 + 2], shares_LPR[1, 2])
    assert torch.equal(saved["shared_weight"], shared_LP.flatten())
    save_coefficients(tmp_path / "c.safetensors", Coefficients(shares_LPR, None))
    assert set(load_file(tmp_path / "c.safetensors")) == {"coefficients"}


def test_an_unknown_method_is_answered_with_the_known_ones() -> None:
    name: Any = "tie"
    with pytest.raises(UnknownNameError, match=r"unknown merge method 'tie'; .*; did you mean 'ties'\?"):
        MERGE_METHODS[name]
