"""Sums of experts and of their differences from the base: against what was computed by hand, and in expectation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xft.merge.combine import Options, dare, linear, task_arithmetic, ties


def some_experts(experts: int = 5, seed: int = 0) -> tuple[list[Tensor], Tensor, Tensor]:
    """Experts near a base, the base, and weights that sum to 1."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(16, 24, generator=generator)
    experts_E = [base + 0.1 * torch.randn(16, 24, generator=generator) for _ in range(experts)]
    return experts_E, base, torch.randn(experts, generator=generator).softmax(0)


def test_a_sum_computed_by_hand() -> None:
    experts_E = [torch.tensor([[8.0, -4.0]]), torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, -6.0]])]
    # 0.75 * 8 + 0.0625 * 1 + 0.1875 * 5 = 7; 0.75 * -4 + 0.0625 * 2 + 0.1875 * -6 = -4
    assert linear(experts_E, torch.tensor([0.75, 0.0625, 0.1875])).tolist() == [[7.0, -4.0]]


def test_a_sum_equals_that_in_double_precision() -> None:
    experts_E, _, weights_E = some_experts()
    exact = torch.einsum("e,eij->ij", weights_E.double(), torch.stack(experts_E).double())
    torch.testing.assert_close(linear(experts_E, weights_E).double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_experts_are_summed_in_fp32(dtype: torch.dtype) -> None:
    experts_E, _, weights_E = some_experts()
    rough = [expert.to(dtype) for expert in experts_E]
    mixed = linear(rough, weights_E)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, linear([expert.float() for expert in rough], weights_E))


def test_out_is_overwritten_whatever_it_held_and_the_experts_are_left_alone() -> None:
    experts_E, _, weights_E = some_experts()
    before = [expert.clone() for expert in experts_E]
    out = torch.full((16, 24), float("nan"))
    assert linear(experts_E, weights_E, out) is out
    assert torch.equal(out, linear(experts_E, weights_E))
    assert all(torch.equal(*pair) for pair in zip(experts_E, before, strict=True))


def test_weights_of_another_number_of_experts_are_refused() -> None:
    experts_E, _, weights_E = some_experts()
    with pytest.raises(ValueError, match="shorter"):
        linear(experts_E, weights_E[:4])


def test_task_arithmetic_of_whole_weights_is_the_sum_and_scale_goes_beyond() -> None:
    experts_E, base, weights_E = some_experts()
    plain = linear(experts_E, weights_E)
    torch.testing.assert_close(task_arithmetic(experts_E, base, weights_E, Options()), plain)
    doubled = task_arithmetic(experts_E, base, weights_E, Options(scale=2.0))
    torch.testing.assert_close(doubled - base, 2 * (plain - base), rtol=1e-4, atol=1e-5)


def test_ties_computed_by_hand() -> None:
    base = torch.zeros(1, 4)
    experts_E = [torch.tensor([[4.0, -3.0, 0.5, 0.1]]), torch.tensor([[-2.0, -1.0, 3.0, 0.2]])]
    weights_E = torch.tensor([0.25, 0.75])
    # Half of the entries are kept: 4, -3 of the first, -2, 3 of the second. Weighted sums: 1 - 1.5 < 0, -0.75, 2.25, 0.
    # Signs -, -, +, +. Agreeing: the second alone, the first alone, the second alone, none.
    found = ties(experts_E, base, weights_E, Options(density=0.5))
    assert found.tolist() == [[-2.0, -3.0, 3.0, 0.0]]
    # All are kept: sums 1 - 1.5, -0.75 - 0.75, 0.125 + 2.25, 0.025 + 0.15; the last three agree.
    found = ties(experts_E, base, weights_E, Options(density=1.0, scale=2.0))
    torch.testing.assert_close(found, torch.tensor([[-4.0, -3.0, 4.75, 0.35]]))


def test_ties_elects_plus_where_the_weighted_sum_is_nothing() -> None:
    experts_E = [torch.tensor([[2.0]]), torch.tensor([[-2.0]])]
    assert ties(experts_E, torch.zeros(1, 1), torch.tensor([0.5, 0.5]), Options()).item() == 2.0


def test_dare_keeps_a_share_of_the_entries_and_the_expectation() -> None:
    experts_E, base, weights_E = some_experts()
    whole = task_arithmetic(experts_E, base, weights_E, Options())
    draws = torch.stack([dare(experts_E, base, weights_E, Options(density=0.25, seed=seed)) for seed in range(4000)])
    deviation = draws.std(0) / 4000**0.5
    assert ((draws.mean(0) - whole).abs() < 5 * deviation).all()
    alone = dare(experts_E[:1], base, torch.ones(1), Options(density=0.25, seed=1)) - base
    kept = alone.abs() > 1e-6
    assert 0.18 < kept.float().mean() < 0.32
    torch.testing.assert_close(alone[kept], 4 * (experts_E[0] - base)[kept], rtol=1e-4, atol=1e-5)


def test_dare_draws_again_for_another_seed_and_the_same_for_the_same() -> None:
    experts_E, base, weights_E = some_experts()
    one, same, other = (dare(experts_E, base, weights_E, Options(density=0.5, seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
