"""Learn the merge coefficients: a dense model whose FFNs are mixed from memory-mapped experts once a step.

The logits `a` are constant within an optimiser step, so the merged matrices are too. They are mixed before the step,
their gradient accumulates over its micro-batches, and dL/da_i follows from one inner product with each expert:
dL/dc_i = (1-λ) <dL/dW, W_i>, then through the softmax. No expert ever has a gradient or a second copy.

Shapes: L layers, R routed experts.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, TrainerCallback, set_seed

from xft.cost import count
from xft.data.prepare import read_pairs
from xft.device import compute_dtype, describe_device
from xft.families import Family
from xft.memory import keep_heap_warm
from xft.merge.methods import MERGE_METHODS, coefficients, mix
from xft.merge.write import dense_skeleton
from xft.moe.mixture import Mixture
from xft.recipe import MergeConfig, TuneConfig
from xft.stage import Meter, write_json
from xft.tune.callbacks import DivergenceGuard, MetricsFile, SaveByClock, ShowProgress, last_resume_point
from xft.tune.dataset import Collator, OrderedRows, encode_all, training_order
from xft.tune.trainer import ResponseTrainer, training_arguments
from xft.tune.tune import RESUME, quiet

COEFFICIENTS = "coefficients.safetensors"


class Merging(nn.Module):
    """A dense model with mixed FFNs, whose only parameters are the logits `a`, (L, R)."""

    dense: Any

    def __init__(self, mixture: Mixture, shared_weight: float, method: str) -> None:
        super().__init__()
        family: Family = mixture.family
        self.mixture, self.family = mixture, family
        self.shared_weight = shared_weight if mixture.rule.shared else 0.0
        self.grad_norm = 0.0
        """Of the last contraction; the Trainer measures its own before there is a gradient."""
        self.logits_LR = nn.Parameter(MERGE_METHODS[method].initial(mixture.layers, mixture.routed))
        dense = dense_skeleton(mixture)
        for parameter in dense.parameters():
            parameter.requires_grad_(False)
        # Kept out of the module tree: the Trainer must see, save and optimise `a` alone.
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

    def ffn_weights(self) -> list[tuple[tuple[int, str], nn.Parameter]]:
        """Return the merged matrices with their layer and projection."""
        found: list[tuple[tuple[int, str], nn.Parameter]] = []
        for layer in range(self.mixture.layers):
            ffn = self.dense.get_submodule(self.family.ffn.format(layer=layer))
            found += [((layer, name), ffn.get_submodule(name).weight) for name in self.family.projections]
        return found

    @torch.no_grad()
    def remix(self) -> None:
        """Overwrite the merged matrices with the mix that the present `a` gives."""
        shares_LR = coefficients(self.logits_LR.detach())
        for (layer, name), weight in self.ffn_weights():
            mix(*self.mixture.experts(layer, name), shares_LR[layer], self.shared_weight, out=weight.data)

    @torch.no_grad()
    def contract(self) -> None:
        """Turn the merged matrices' gradients into the gradient of `a`, and drop them."""
        shares_LR = coefficients(self.logits_LR.detach())
        inner_LR = torch.zeros_like(shares_LR)
        for (layer, name), weight in self.ffn_weights():
            if weight.grad is None:
                continue
            _, experts_R = self.mixture.experts(layer, name)
            gradient = weight.grad.reshape(-1)
            for number, expert in enumerate(experts_R):
                inner_LR[layer, number] += torch.dot(gradient, expert.reshape(-1).to(gradient))
            weight.grad = None
        inner_LR *= 1.0 - self.shared_weight
        mean_L1 = (shares_LR * inner_LR).sum(1, keepdim=True)
        self.logits_LR.grad = shares_LR * (inner_LR - mean_L1)
        self.grad_norm = float(self.logits_LR.grad.norm())

    def movement(self) -> float:
        """Return the largest `|R c_i - 1|`: 0 for the uniform merge, R-1 for a single expert."""
        return float((coefficients(self.logits_LR.detach()) * self.logits_LR.shape[1] - 1).abs().max())


class Contraction(TrainerCallback):
    """Bring the gradient to `a` before the optimiser step, and mix anew after it."""

    def __init__(self, merging: Merging) -> None:
        self.merging = merging

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mix with the coefficients that a resume point may have brought."""
        self.merging.remix()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Contract once a step; gradients of several processes are averaged."""
        self.merging.contract()
        if args.world_size > 1:
            torch.distributed.all_reduce(self.merging.logits_LR.grad, op=torch.distributed.ReduceOp.AVG)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mix once a step."""
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


def fit(job: FitJob, meter: Meter) -> Tensor:
    """Learn the coefficients on the pairs and write them to the job's folder; return them, (L, R)."""
    quiet()
    keep_heap_warm()
    source = Mixture(job.mixture)
    tokenizer = AutoTokenizer.from_pretrained(job.mixture)
    rows, counts = encode_all(read_pairs(job.pairs), tokenizer, job.prompt, job.tune.max_length)
    order = training_order(rows, epochs=job.merge.epochs, batch=job.tune.batch, seed=job.seed)
    dtype = compute_dtype(job.tune.precision)
    set_seed(job.seed)
    merging = Merging(source, job.merge.shared_weight, "learned")
    steps = -(-len(order) // job.tune.batch)
    config = job.tune.model_copy(update={"optimizer": "adamw", "clip": 0.0, "gradient_checkpointing": False})
    arguments = training_arguments(
        config, job.out, lr=job.merge.lr, steps=steps, processes=1, bf16=dtype == torch.bfloat16, seed=job.seed
    )
    merging.to(arguments.device)
    merging.dense.to(arguments.device)
    trainer = ResponseTrainer(
        model=merging,
        args=arguments,
        train_dataset=OrderedRows(rows, order),
        data_collator=Collator(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0),
    )

    def measure(seconds: float) -> dict[str, Any]:
        line = trainer.measure(seconds, len(rows))
        return line | {"grad_norm": merging.grad_norm, "movement": merging.movement()}

    metrics = MetricsFile(job.out, measure)
    for callback in (
        Contraction(merging), DivergenceGuard(), metrics, ShowProgress(job.label),
        SaveByClock(job.tune.checkpoint_minutes),
    ):  # fmt: skip
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=last_resume_point(job.out / RESUME))
    shares_LR = coefficients(merging.logits_LR.detach()).cpu()
    save_coefficients(job.out, shares_LR, merging.shared_weight)
    cost = count(merging.dense)
    positions, tokens = int(metrics.totals["positions"]), int(metrics.totals["tokens"])
    mean_length = sum(len(row.tokens) for row in rows) / len(rows)
    meter.tokens, meter.flops = tokens, cost.training_flops(positions, tokens, mean_length)
    meter.device, meter.dtype = describe_device(), str(dtype).removeprefix("torch.")
    write_json(job.out / "summary.json", counts | {"steps": steps, "movement": merging.movement()})
    shutil.rmtree(job.out / RESUME, ignore_errors=True)
    return shares_LR


def save_coefficients(out: Path, shares_LR: Tensor, shared_weight: float) -> None:
    """Write coefficients.safetensors: the routed experts' shares, (L, R), and lambda in its metadata."""
    metadata = {"shared_weight": repr(shared_weight)}
    save_file({"coefficients": shares_LR.contiguous()}, out / COEFFICIENTS, metadata=metadata)
