"""Differences mixed in each linear layer: against each token's own matrices, and against the merged FFN."""

from __future__ import annotations

import pytest
import torch
from stock import HIDDEN, stock_ffn
from torch import Tensor, nn

from xft.families import FAMILIES
from xft.moe.adapters import AdapterExperts
from xft.moe.routers import Routing

EXPERTS, RANK = 4, 3
D, TOKENS = HIDDEN, 9


def adapters_of(ffn: nn.Module, model_type: str) -> AdapterExperts:
    adapters = AdapterExperts(ffn, FAMILIES[model_type], EXPERTS, RANK).double()
    for parameter in adapters.parameters():
        nn.init.normal_(parameter, std=0.5)
    return adapters


def own_ffn(
    ffn: nn.Module, adapters: AdapterExperts, x_TD: Tensor, shared: Tensor, ids_K: Tensor, weights_K: Tensor
) -> Tensor:
    """The stock FFN with the matrices of one routing."""
    weights = {}
    for name in adapters.names:
        a, b = (adapters.get_parameter(f"{name}_{end}") for end in "ab")
        linear = ffn.get_submodule(name)
        whole = shared + weights_K.sum()
        mixed = sum(weight * b[expert] @ a[expert] for expert, weight in zip(ids_K.tolist(), weights_K, strict=True))
        weights[f"{name}.weight"] = whole * linear.weight + mixed
        if linear.bias is not None:
            weights[f"{name}.bias"] = whole * linear.bias
    result: Tensor = torch.func.functional_call(ffn, weights, x_TD)
    return result


@pytest.mark.parametrize("model_type", ["llama", "phi3", "gpt_neox"])
def test_each_token_has_its_own_matrices_in_values_and_gradients(model_type: str) -> None:
    torch.manual_seed(3)
    ffn = stock_ffn(model_type)
    adapters = adapters_of(ffn, model_type)
    x_TD = torch.randn(TOKENS, D, dtype=torch.float64, requires_grad=True)
    ids_TK = torch.rand(TOKENS, EXPERTS).topk(2, dim=-1).indices
    weights_TK = torch.rand(TOKENS, 2, dtype=torch.float64, requires_grad=True)
    shared_T = torch.rand(TOKENS, dtype=torch.float64, requires_grad=True)
    found_TD = adapters.mix(x_TD, Routing(shared_T, weights_TK, ids_TK, torch.rand(TOKENS, EXPERTS)), ffn)
    expected_TD = torch.cat(
        [
            own_ffn(ffn, adapters, x_TD[None, token], shared_T[token], ids_TK[token], weights_TK[token])
            for token in range(TOKENS)
        ]
    )
    torch.testing.assert_close(found_TD, expected_TD)
    leaves = [x_TD, weights_TK, shared_T, *adapters.parameters(), *ffn.parameters()]
    weighing_TD = torch.randn(TOKENS, D, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((y * weighing_TD).sum(), leaves) for y in (found_TD, expected_TD))
    for one, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
def test_with_one_routing_for_all_tokens_it_is_the_merged_ffn(model_type: str) -> None:
    torch.manual_seed(4)
    ffn = stock_ffn(model_type)
    adapters = adapters_of(ffn, model_type)
    x_TD, shares_R = torch.randn(TOKENS, D, dtype=torch.float64), torch.rand(EXPERTS, dtype=torch.float64).softmax(0)
    shared, ids_R = torch.tensor(0.6, dtype=torch.float64), torch.arange(EXPERTS)
    weights_R = (1 - shared) * shares_R
    routing = Routing(
        shared.expand(TOKENS), weights_R.expand(TOKENS, -1), ids_R.expand(TOKENS, -1), torch.rand(TOKENS, EXPERTS)
    )
    merged_TD = own_ffn(ffn, adapters, x_TD, shared, ids_R, weights_R)
    torch.testing.assert_close(adapters.mix(x_TD, routing, ffn), merged_TD)
    assert (merged_TD - ffn(x_TD)).abs().max() > 0.1
