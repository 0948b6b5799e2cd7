from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from xft.errors import UnknownNameError
from xft.merge.methods import MERGE_METHODS, coefficients, mix

WEIGHTS = [0.0, 0.3, 0.75, 1.0]


@pytest.fixture
def experts_R() -> Tensor:
    return torch.randn(5, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def shared() -> Tensor:
    return torch.randn(16, 24, generator=torch.Generator().manual_seed(1))


def some_shares(seed: int, routed: int = 5) -> Tensor:
    return coefficients(3 * torch.randn(1, routed, generator=torch.Generator().manual_seed(seed)))[0]


@pytest.mark.parametrize("method", sorted(MERGE_METHODS))
@pytest.mark.parametrize(("layers", "routed"), [(1, 1), (3, 1), (24, 7)])
def test_every_method_starts_from_equal_shares_that_sum_to_one(method: str, layers: int, routed: int) -> None:
    shares_LR = coefficients(MERGE_METHODS[method].initial(layers, routed))
    torch.testing.assert_close(shares_LR, torch.full((layers, routed), 1 / routed))


def test_uniform_and_learned_at_its_start_are_the_same_merge(shared: Tensor, experts_R: Tensor) -> None:
    one, two = (
        mix(shared, experts_R, coefficients(MERGE_METHODS[name].initial(1, 5))[0], 0.75)
        for name in ("uniform", "learned")
    )
    assert torch.equal(one, two)
    torch.testing.assert_close(one, 0.75 * shared + 0.25 * experts_R.mean(0))


def test_only_the_learned_method_is_trained() -> None:
    assert {name: method.learned for name, method in MERGE_METHODS.items()} == {"uniform": False, "learned": True}


def test_coefficients_are_the_softmax_of_each_layers_logits() -> None:
    shares_LR = coefficients(torch.tensor([[0.0, 0.0], [4.0, 1.0]]).log().nan_to_num(neginf=0.0))
    torch.testing.assert_close(shares_LR, torch.tensor([[0.5, 0.5], [0.8, 0.2]]))


@pytest.mark.parametrize("shared_weight", WEIGHTS)
@pytest.mark.parametrize("seed", range(5))
def test_merging_identical_experts_returns_the_expert(shared: Tensor, shared_weight: float, seed: int) -> None:
    mixed = mix(shared, shared.expand(5, -1, -1), some_shares(seed), shared_weight)
    # Each of the seven roundings (product, five sums, the shares' own sum) is half a unit in the last place at most.
    torch.testing.assert_close(mixed, shared, rtol=7 * 2**-24, atol=0)


def test_merging_identical_experts_with_exact_shares_returns_the_expert_bit_for_bit(shared: Tensor) -> None:
    shared, shares = shared.bfloat16().float(), torch.tensor([0.5, 0.25, 0.25])  # every product and sum fits fp32
    assert torch.equal(mix(shared, shared.expand(3, -1, -1), shares, 0.75), shared)


@pytest.mark.parametrize("chosen", range(5))
def test_one_hot_shares_without_the_shared_expert_return_that_expert_bit_for_bit(
    shared: Tensor, experts_R: Tensor, chosen: int
) -> None:
    shares = torch.zeros(5)
    shares[chosen] = 1.0
    assert torch.equal(mix(shared, experts_R, shares, 0.0), experts_R[chosen])


@pytest.mark.parametrize("seed", range(5))
def test_a_shared_weight_of_one_returns_the_shared_expert_bit_for_bit(
    shared: Tensor, experts_R: Tensor, seed: int
) -> None:
    assert torch.equal(mix(shared, experts_R, some_shares(seed), 1.0), shared)


def test_a_mixture_computed_by_hand() -> None:
    shared = torch.tensor([[8.0, -4.0]])
    experts_R = torch.tensor([[[1.0, 2.0]], [[5.0, -6.0]]])
    # 0.75 * 8 + 0.25 * (0.25 * 1 + 0.75 * 5) = 7; 0.75 * -4 + 0.25 * (0.25 * 2 + 0.75 * -6) = -4
    mixed = mix(shared, experts_R, torch.tensor([0.25, 0.75]), 0.75)
    assert mixed.tolist() == [[7.0, -4.0]]


@pytest.mark.parametrize("shared_weight", WEIGHTS)
def test_mixing_equals_the_sum_in_double_precision(shared: Tensor, experts_R: Tensor, shared_weight: float) -> None:
    shares = some_shares(3)
    exact = shared_weight * shared.double() + (1 - shared_weight) * torch.einsum(
        "r,rij->ij", shares.double(), experts_R.double()
    )
    torch.testing.assert_close(mix(shared, experts_R, shares, shared_weight).double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_experts_are_mixed_in_fp32(shared: Tensor, experts_R: Tensor, dtype: torch.dtype) -> None:
    shared, experts_R = shared.to(dtype), experts_R.to(dtype)
    mixed = mix(shared, experts_R, some_shares(2), 0.75)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, mix(shared.float(), experts_R.float(), some_shares(2), 0.75))


def test_out_is_overwritten_whatever_it_held_and_the_experts_are_left_alone(shared: Tensor, experts_R: Tensor) -> None:
    before = shared.clone(), experts_R.clone()
    out = torch.full((16, 24), float("nan"))
    assert mix(shared, experts_R, some_shares(1), 0.75, out=out) is out
    assert torch.equal(out, mix(shared, experts_R, some_shares(1), 0.75))
    assert torch.equal(shared, before[0])
    assert torch.equal(experts_R, before[1])


def test_shares_of_another_number_of_experts_are_refused(shared: Tensor, experts_R: Tensor) -> None:
    with pytest.raises(ValueError, match="shorter"):
        mix(shared, experts_R, some_shares(1, routed=4), 0.75)


def test_an_unknown_method_is_answered_with_the_known_ones() -> None:
    name: Any = "ties"
    with pytest.raises(UnknownNameError, match="unknown merge method 'ties'; available: learned, uniform"):
        MERGE_METHODS[name]
