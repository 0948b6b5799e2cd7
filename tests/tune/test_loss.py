"""The piecewise loss is plain cross-entropy, in value and in every gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from xft.families import FAMILIES
from xft.tune import loss
from xft.tune.dataset import IGNORED
from xft.tune.loss import logits_of, response_hidden, summed_loss, token_losses


@pytest.mark.parametrize("rows", [1, 3, 7, 20, 512])
def test_summed_loss_equals_plain_cross_entropy_in_value_and_gradient(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "ROWS", rows)
    generator = torch.Generator().manual_seed(rows)
    head = torch.nn.Linear(16, 40, bias=False)
    hidden = torch.randn(20, 16, generator=generator, requires_grad=True)
    targets = torch.randint(40, (20,), generator=generator)
    plain_hidden, plain_weight = hidden.detach().clone().requires_grad_(), head.weight.detach().clone().requires_grad_()

    ours = summed_loss(hidden, targets, head)
    plain = F.cross_entropy(plain_hidden @ plain_weight.T, targets, reduction="sum")
    ours.backward()
    plain.backward()

    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(hidden.grad, plain_hidden.grad)
    torch.testing.assert_close(head.weight.grad, plain_weight.grad)
    torch.testing.assert_close(token_losses(hidden, targets, head).sum(), plain)


def test_a_batch_without_trained_positions_has_loss_and_gradient_zero() -> None:
    hidden = torch.randn(0, 16, requires_grad=True)
    ours = summed_loss(hidden, torch.empty(0, dtype=torch.long), torch.nn.Linear(16, 40))
    ours.backward()
    assert float(ours.detach()) == 0.0


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_models_response_loss_and_gradients_equal_those_over_its_full_logits(
    model_type: str, dense_of: Callable[..., Path]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(dense_of(model_type), dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, len(model.get_input_embeddings().weight), (3, 24), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    labels = ids.clone()
    labels[:, :6] = IGNORED
    labels[1, 15:] = IGNORED

    hidden, targets = response_hidden(model, {"input_ids": ids, "attention_mask": mask}, labels)
    ours = summed_loss(hidden, targets, logits_of(model))
    ours.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    logits = model(input_ids=ids, attention_mask=mask).logits
    plain = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )
    plain.backward()

    assert len(targets) == 18 + 9 + 18
    torch.testing.assert_close(ours, plain)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_logits_exist_for_no_more_than_rows_positions_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "ROWS", 4)
    seen: list[int] = []
    head = torch.nn.Linear(8, 30)
    head.register_forward_hook(lambda _module, _args, output: seen.append(len(output)))
    hidden = torch.randn(10, 8, requires_grad=True)
    summed_loss(hidden, torch.zeros(10, dtype=torch.long), head).backward()
    assert sorted(seen) == [2, 2, 4, 4, 4, 4]  # once forward, once again in the backward pass
