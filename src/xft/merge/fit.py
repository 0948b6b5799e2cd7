"""Learn the merge coefficients: a dense model whose FFNs are mixed from memory-mapped experts once a step.

The logits `a` are constant within an optimiser step, so the merged matrices are too. They are mixed before the step,
their gradient accumulates over its micro-batches, and dL/da_i follows from one inner product with each expert:
dL/dc_i = (1-λ) <dL/dW, W_i>, then through the softmax, and dL/dλ = <dL/dW, W_shared - Σ c_i W_i>. No expert ever has a
gradient or a second copy. The optimiser goes layer by layer: gradient, step, new mix, while the layer's experts are in
the page cache, so that experts which do not fit into memory are read once a step.

Shapes: L layers, P projections with coefficients of their own (1: they share them), R routed experts, E all experts.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, TrainerCallback, set_seed

from xft.cost import count
from xft.data.prepare import read_pairs
from xft.device import compute_dtype, describe_device
from xft.errors import DivergedError
from xft.families import Family, Part
from xft.memory import keep_heap_warm
from xft.merge.combine import inner, linear
from xft.merge.methods import Coefficients, shared_out
from xft.merge.write import dense_skeleton
from xft.moe.mixture import Mixture
from xft.prompts import tokenizer_of
from xft.recipe import MergeConfig, TuneConfig
from xft.stage import Meter, write_json
from xft.tune.callbacks import MetricsFile, ResumePoints, ShowProgress, last_resume_point
from xft.tune.dataset import Collator, OrderedRows, encode_all, training_order
from xft.tune.trainer import ResponseTrainer, training_arguments
from xft.tune.tune import RESUME, quiet


class Merging(nn.Module):
    """A dense model with mixed FFNs, whose only parameters are the logits `a`, and those of λ where it is learned."""

    dense: Any

    def __init__(self, mixture: Mixture, config: MergeConfig) -> None:
        super().__init__()
        family: Family = mixture.family
        self.mixture, self.family, self.prior = mixture, family, config.prior
        self.grad_norm = 0.0
        """Of the last step; the Trainer measures its own before there is a gradient."""
        places = len(family.projections) if config.per == "matrix" else 1
        layers, self.parts = len(mixture.mixed_layers), mixture.settings.parts
        self.logits_LPR = nn.Parameter(torch.ones(layers, places, mixture.routed))  # as in the reference
        shared_LP = torch.full((layers, places), config.shared_weight)
        self.fixed_LP = shared_LP if mixture.layout.weighs_shared else None
        learned = config.learn_shared_weight and self.fixed_LP is not None
        # Logits of λ, as their distance from those of the fixed value
        self.shift_LP = nn.Parameter(torch.zeros_like(shared_LP)) if learned else None
        dense = dense_skeleton(mixture)
        for parameter in dense.parameters():
            parameter.requires_grad_(False)
        # Kept out of the module tree: the Trainer must see, save and optimise the coefficients alone.
        object.__setattr__(self, "dense", dense)
        self.config = dense.config
        for _, weight in self.ffn_weights():
            weight.requires_grad_(True)
        self.remix()

    def forward(self, **inputs: Any) -> Any:
        """Run the dense model."""
        self.dense.train(self.training)
        return self.dense(**inputs)

    def get_output_embeddings(self) -> nn.Module:
        """Return the dense model's output matrix."""
        head: nn.Module = self.dense.get_output_embeddings()
        return head

    def ffn_weights(self, only: int | None = None) -> list[tuple[tuple[int, Part], nn.Parameter]]:
        """Return the merged matrices and biases, of one layer or of all, with their layer and part."""
        found: list[tuple[tuple[int, Part], nn.Parameter]] = []
        for layer in self.mixture.mixed_layers if only is None else [only]:
            ffn = self.dense.get_submodule(self.family.ffn(layer))
            found += [((layer, part), ffn.get_parameter(part.tensor)) for part in self.mixture.parts]
        return found

    @torch.no_grad()
    def coefficients(self) -> Coefficients:
        """Return the present coefficients, on the CPU."""
        shared_LP = self.fixed_LP
        if shared_LP is not None and self.shift_LP is not None:
            shared_LP = (shared_LP.logit() + self.shift_LP.cpu()).sigmoid()
        return Coefficients(self._shares().cpu(), shared_LP)

    def _shares(self) -> Tensor:
        """Return a softmax over the copies of each part, divided by the number of parts."""
        logits_LPR = self.logits_LPR.detach().float()
        shares_LPR = torch.empty_like(logits_LPR)
        for part in range(self.parts):
            shares_LPR[..., part :: self.parts] = logits_LPR[..., part :: self.parts].softmax(-1) / self.parts
        return shares_LPR

    @torch.no_grad()
    def remix(self, only: int | None = None) -> None:
        """Overwrite the merged matrices, of one layer or of all, with the mix that the present coefficients give."""
        coefficients = self.coefficients()
        for (layer, part), weight in self.ffn_weights(only):
            for piece in self.mixture.pieces(layer, part):
                weights_E = coefficients.of(self.row(layer), part.place, piece)
                linear(piece.experts, weights_E, out=piece.view(weight.data))

    @torch.no_grad()
    def contract(self, only: int | None = None) -> None:
        """Turn the merged matrices' gradients, of one layer or of all, into those of the logits, and drop them.

        The logits of other layers get a gradient of 0.
        """
        coefficients = self.coefficients()
        shares_LPR, shared_LP = coefficients.shares_LPR, coefficients.shared_LP
        places = shares_LPR.shape[1]
        inner_LPR, inner_LP = torch.zeros_like(shares_LPR), torch.zeros(shares_LPR.shape[:2])
        for (layer, part), weight in self.ffn_weights(only):
            if weight.grad is None:
                continue
            at = self.row(layer), part.place if places > 1 else 0
            for piece in self.mixture.pieces(layer, part):
                inner_E = inner(piece.experts, piece.view(weight.grad)).cpu()
                routed = inner_LPR[at][piece.routed]  # a view
                shared = len(inner_E) - len(routed)
                routed += piece.factor * inner_E[shared:]
                inner_LP[at] += inner_E[:shared].sum()
            weight.grad = None
        mean_LPR = torch.empty_like(shares_LPR)
        for number in range(self.parts):
            copies = slice(number, None, self.parts)
            sums_LP = (shares_LPR * inner_LPR)[..., copies].sum(-1, keepdim=True)
            mean_LPR[..., copies] = self.parts * sums_LP
        routed_LP = 1.0 if shared_LP is None else 1.0 - shared_LP[..., None]
        gradient_LPR = routed_LP * shares_LPR * (inner_LPR - mean_LPR)
        self.logits_LPR.grad = gradient_LPR.to(self.logits_LPR)
        if shared_LP is not None and self.shift_LP is not None:
            slope_LP = shared_LP * (1.0 - shared_LP) * (inner_LP - mean_LPR[..., 0])
            self.shift_LP.grad = slope_LP.to(self.shift_LP) + self.prior * self.shift_LP

    def movement(self) -> float:
        """Return the largest `|c_i / c - 1|` against the uniform merge's c: 0 for that, R-1 for a single expert."""
        shares_LPR = self.coefficients().shares_LPR
        uniform_LPR = shared_out(torch.ones_like(shares_LPR), self.parts)
        return float((shares_LPR / uniform_LPR - 1).abs().max())

    def row(self, layer: int) -> int:
        """Return the place of a layer among those that are mixtures."""
        return layer - self.mixture.mixed_layers.start


class LayerByLayer(torch.optim.AdamW):
    """AdamW on the coefficients, which are on their device already, one layer after the other.

    A step turns the gradients of a layer's merged matrices into those of its coefficients, moves these, and mixes the
    layer anew. The coefficients' own rows are what is optimised, since Adam moves a row without a gradient too.
    """

    def __init__(self, merging: Merging, lr: float) -> None:
        self.merging = merging
        self.rows = {
            layer: [parameter.data[merging.row(layer)] for parameter in merging.parameters()]
            for layer in merging.mixture.mixed_layers
        }
        super().__init__([row for rows in self.rows.values() for row in rows], lr=lr, weight_decay=0.0)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Contract, move and mix each layer; the merged matrices' gradients are gone then.

        Raises:
            DivergedError: a gradient that is not finite; its layer is not moved.
        """
        squares = 0.0
        for layer, rows in self.rows.items():
            self.merging.contract(layer)
            for row, parameter in zip(rows, self.merging.parameters(), strict=True):
                assert parameter.grad is not None
                row.grad = parameter.grad[self.merging.row(layer)]
                squares += float(row.grad.square().sum())
            if not math.isfinite(squares):
                step = 1 + int(self.state[rows[0]].get("step", 0))
                raise DivergedError(
                    f"step {step}: layer {layer}'s coefficients have no finite gradient; lower merge.lr"
                )
            super().step()
            for row in rows:
                row.grad = None
            self.merging.remix(layer)
        self.merging.grad_norm = squares**0.5


class Remix(TrainerCallback):
    """Mix with the coefficients that a resume point may have brought."""

    def __init__(self, merging: Merging) -> None:
        self.merging = merging

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mix all layers."""
        self.merging.remix()


@dataclass(frozen=True, kw_only=True)
class FitJob:
    """All that learning the coefficients needs."""

    mixture: Path
    pairs: Path
    out: Path
    prompt: str
    seed: int
    tune: TuneConfig
    merge: MergeConfig
    label: str = "merge"


def fit(job: FitJob, meter: Meter) -> Coefficients:
    """Learn the coefficients on the pairs; write metrics and summary into the job's folder."""
    quiet()
    keep_heap_warm()
    source = Mixture(job.mixture)
    tokenizer = tokenizer_of(job.mixture)
    rows, counts = encode_all(read_pairs(job.pairs), tokenizer, job.prompt, job.tune.max_length)
    order = training_order(rows, epochs=job.merge.epochs, batch=job.tune.batch, seed=job.seed)
    dtype = compute_dtype(job.tune.precision)
    set_seed(job.seed)
    merging = Merging(source, job.merge)
    steps = -(-len(order) // job.tune.batch)
    config = job.tune.model_copy(update={"optimizer": "adamw", "clip": 0.0, "gradient_checkpointing": False})
    arguments = training_arguments(
        config, job.out, lr=job.merge.lr, steps=steps, processes=1, bf16=dtype == torch.bfloat16, seed=job.seed
    )
    merging.to(arguments.device)
    merging.dense.to(arguments.device)
    teacher = None
    if job.merge.loss == "mixture":
        teacher = AutoModelForCausalLM.from_pretrained(job.mixture, dtype=dtype).eval().requires_grad_(False)
        teacher.to(arguments.device)
    trainer = ResponseTrainer(
        model=merging,
        config=config,
        teacher=teacher,
        section="merge",
        args=arguments,
        train_dataset=OrderedRows(rows, order),
        data_collator=Collator(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0),
        optimizers=(LayerByLayer(merging, job.merge.lr), None),
    )

    def measure(seconds: float) -> dict[str, Any]:
        line = trainer.measure(seconds, len(rows))
        return line | {"grad_norm": merging.grad_norm, "movement": merging.movement()}

    metrics = MetricsFile(job.out, measure)
    points = ResumePoints(job.tune.checkpoint_minutes)
    for callback in (Remix(merging), metrics, ShowProgress(job.label), points):
        trainer.add_callback(callback)
    with points.heeding_signals():
        trainer.train(resume_from_checkpoint=last_resume_point(job.out / RESUME))
    coefficients = merging.coefficients()
    cost = count(merging.dense)
    positions, tokens = int(metrics.totals["positions"]), int(metrics.totals["tokens"])
    mean_length = sum(len(row.tokens) for row in rows) / len(rows)
    meter.tokens, meter.flops = tokens, cost.training_flops(positions, tokens, mean_length)
    if teacher is not None:
        meter.flops += count(teacher).forward_flops(positions, tokens, mean_length)
    meter.device, meter.dtype = describe_device(), str(dtype).removeprefix("torch.")
    write_json(job.out / "summary.json", counts | {"steps": steps, "movement": merging.movement()})
    shutil.rmtree(job.out / RESUME, ignore_errors=True)
    return coefficients
