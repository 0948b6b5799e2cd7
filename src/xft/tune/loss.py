"""Cross-entropy on the response, without logits for anything else and never for all rows at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from xft.tune.dataset import IGNORED

Head = Callable[[Tensor], Tensor]

SCALINGS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "logits_scaling": lambda logits, value: logits / value,  # Granite
    "logit_scale": lambda logits, value: logits * value,  # Cohere
    "final_logit_softcapping": lambda logits, value: torch.tanh(logits / value) * value,  # Gemma
}
"""What families do to the output matrix's logits, by the keys of config.json that say so."""
ROWS = 512
"""Positions whose logits exist at one time."""


def response_hidden(model: Any, inputs: dict[str, Tensor], labels_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Run the backbone; return the hidden states that predict trained positions, (N, D), and their targets, (N,)."""
    nothing = torch.empty(0, dtype=torch.long, device=labels_BS.device)
    # The stock forward would make logits for every position; asked for none of them it still gives the hidden states.
    outputs = model(**inputs, logits_to_keep=nothing, output_hidden_states=True, use_cache=False)
    targets = labels_BS[:, 1:]
    trained = targets != IGNORED
    return outputs.hidden_states[-1][:, :-1][trained], targets[trained]


def logits_of(model: Any) -> Head:
    """Return what turns a model's hidden states into its logits: the output matrix, and what the family does then."""
    matrix, config = model.get_output_embeddings(), model.config
    return lambda hidden: scaled(matrix(hidden), config)


def scaled(logits: Tensor, config: Any) -> Tensor:
    """Do to the output matrix's logits, all of them or some, what the family does."""
    for key, scale in SCALINGS.items():
        if value := getattr(config, key, None):
            logits = scale(logits, value)
    return logits


def summed_loss(hidden_ND: Tensor, targets_N: Tensor, head: Head) -> Tensor:
    """Return the summed cross-entropy in fp32; logits exist for `ROWS` positions at a time, in backward too."""
    pieces = [
        checkpoint(_piece, hidden, targets, head, use_reentrant=False)
        for hidden, targets in zip(hidden_ND.split(ROWS), targets_N.split(ROWS), strict=True)
    ]
    return torch.stack(pieces).sum() if pieces else hidden_ND.sum() * 0.0


def summed_divergence(hidden_ND: Tensor, taught_ND: Tensor, head: Head, teacher: Head) -> Tensor:
    """Return the summed KL divergence from a teacher's predictions in fp32, by pieces as `summed_loss`.

    `taught_ND` are the teacher's hidden states at the same positions, `teacher` makes its logits of them.
    """
    pieces = [
        checkpoint(_divergence, hidden, taught, head, teacher, use_reentrant=False)
        for hidden, taught in zip(hidden_ND.split(ROWS), taught_ND.split(ROWS), strict=True)
    ]
    return torch.stack(pieces).sum() if pieces else hidden_ND.sum() * 0.0


def token_losses(hidden_ND: Tensor, targets_N: Tensor, head: Head) -> Tensor:
    """Return the cross-entropy of each position, (N,), in fp32; for scoring, without gradients."""
    pairs = zip(hidden_ND.split(ROWS), targets_N.split(ROWS), strict=True)
    return torch.cat([F.cross_entropy(head(hidden).float(), targets, reduction="none") for hidden, targets in pairs])


def _divergence(hidden: Tensor, taught: Tensor, head: Head, teacher: Head) -> Tensor:
    with torch.no_grad():
        target = teacher(taught).float().log_softmax(-1)
    return F.kl_div(head(hidden).float().log_softmax(-1), target, reduction="sum", log_target=True)


def _piece(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    return F.cross_entropy(head(hidden).float(), targets, reduction="sum")
