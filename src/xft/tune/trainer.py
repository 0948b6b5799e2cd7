"""The Trainer with the one thing it can't do: response-only loss in pieces, plus the balance loss of mixtures."""

from __future__ import annotations

import contextlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainingArguments

from xft.errors import DivergedError
from xft.moe.balance import ExpertHealth, balance_loss, record_routers, z_loss
from xft.moe.layer import MoELayer, RouterOutput
from xft.moe.slices import assign_slices, ungated
from xft.recipe import TuneConfig
from xft.tune.loss import logits_of, response_hidden, summed_divergence, summed_loss

ROUTED = ".experts."
"""Stands in the name of every parameter of a routed expert, and of nothing else."""


class ResponseTrainer(Trainer):
    """Trainer whose loss is the mean cross-entropy over the response tokens of an optimiser step.

    TRL's SFTTrainer drops the loss that a model returns and builds its own, so a mixture's balance loss has no place
    there; here it is formed where the batch's mask is known. Overrides `compute_loss`, and `create_optimizer` for the
    routed experts' own learning rate.
    """

    # compute_loss divides by the tokens of the whole accumulated batch itself
    loss_is_scaled_for_ga = True

    def __init__(
        self, *args: Any, config: TuneConfig, teacher: Any = None, section: str = "tune", **kwargs: Any
    ) -> None:
        """Take Trainer's arguments, the losses' settings, and a model whose predictions are learned instead.

        `section` is the recipe's that has the learning rate.
        """
        super().__init__(*args, **kwargs)
        self.config, self.teacher, self.section = config, teacher, section
        self.model_accepts_loss_kwargs = True  # asks Trainer for num_items_in_batch
        self.remove_callback(PrinterCallback)
        assert self.model is not None
        self.mixture = any(isinstance(module, MoELayer) for module in self.model.modules())
        self.ungated = ungated(self.model)
        self.health = ExpertHealth()
        self.balance_sum, self.micro_batches = 0.0, 0
        self.step_tokens, self.step_positions = 0, 0

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return Trainer's optimiser, with the routed experts in groups of their own where they have a rate."""
        optimizer = super().create_optimizer(model)
        if self.config.routed_lr is None or not self.mixture:
            return optimizer
        owner = self.model if model is None else model
        assert owner is not None
        routed = {id(parameter) for name, parameter in owner.named_parameters() if ROUTED in name}
        groups = []
        for group in optimizer.param_groups:
            parts: tuple[list[Any], list[Any]] = ([], [])
            for parameter in group["params"]:
                parts[id(parameter) in routed].append(parameter)
            rates = group["lr"], self.config.routed_lr
            groups += [group | {"params": part, "lr": rate} for part, rate in zip(parts, rates, strict=True) if part]
        optimizer.param_groups = groups
        return optimizer

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this micro-batch's share of the step's loss."""
        labels, mask = inputs.pop("labels"), inputs["attention_mask"]
        inner = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        if self.ungated:
            assign_slices(self.ungated, inputs.pop("numbers"), mask.shape[1])
        recording: contextlib.AbstractContextManager[list[RouterOutput]]
        recording = record_routers(inner) if self.mixture else contextlib.nullcontext([])
        with recording as routed, self.accelerator.autocast():
            hidden, targets = response_hidden(model, inputs, labels)
            summed = self._summed(inner, inputs, labels, hidden, targets)
        total = int(num_items_in_batch) if num_items_in_batch is not None else targets.numel()
        # DDP averages gradients over processes, while the token count is of all of them
        loss = summed / total * self.accelerator.num_processes
        if not torch.isfinite(loss):
            raise DivergedError(
                f"step {self.state.global_step + 1}: the loss is {float(loss.detach())}; lower {self.section}.lr"
            )
        self.step_tokens = total
        self.step_positions += int(mask.sum())
        if routed:
            balance = balance_loss(routed, mask, self.config.balance_loss)
            if not self.ungated:  # nothing to learn from it
                penalty = self.config.balance * balance
                if self.config.z_loss:
                    penalty = penalty + self.config.z_loss * z_loss(routed, mask)
                loss = loss + penalty / self.current_gradient_accumulation_steps
            self.health.add(routed, mask.reshape(-1))
            self.balance_sum += float(balance.detach())
            self.micro_batches += 1
        return (loss, None) if return_outputs else loss

    def _summed(self, model: Any, inputs: dict[str, Tensor], labels: Tensor, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the loss against the responses, or against the teacher's predictions of them."""
        if self.teacher is None:
            return summed_loss(hidden, targets, logits_of(model))
        with torch.no_grad():
            taught, _ = response_hidden(self.teacher, inputs, labels)
        return summed_divergence(hidden, taught, logits_of(model), logits_of(self.teacher))

    def measure(self, seconds: float, rows: int) -> dict[str, Any]:
        """Return what was counted during a step of `seconds`, with `rows` rows an epoch; start the counts anew.

        Counts are those of all processes, each of which must call it.
        """
        world = self.accelerator.num_processes
        batch = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * world
        own = [self.step_positions, self.micro_batches, self.balance_sum]
        total = self._over_processes(torch.tensor(own, dtype=torch.float64, device=self.args.device))
        positions, micro_batches, balance_sum = total.tolist()
        line: dict[str, Any] = {
            "epoch": round(self.state.global_step * batch / rows, 4),
            "tokens": self.step_tokens,
            "positions": int(positions),
            "tokens_per_second": round(self.step_tokens / max(seconds, 1e-9), 1),
        }
        if micro_batches:
            line |= {"balance": balance_sum / micro_batches, "experts": self.health.take(self._over_processes)}
        self.step_positions = self.micro_batches = 0
        self.balance_sum = 0.0
        return line

    def _over_processes(self, counts: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(counts, "sum")
        return total


def training_arguments(
    config: TuneConfig, out: Path, *, lr: float, steps: int, processes: int, bf16: bool, seed: int
) -> TrainingArguments:
    """Map the recipe's keys to transformers' arguments; `processes` share a batch's micro-batches out evenly."""
    arguments = TrainingArguments(
        output_dir=str(out / "resume"),
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=config.batch // (config.micro_batch * processes),
        num_train_epochs=1,  # the rows are ordered for all epochs
        train_sampling_strategy="sequential",
        learning_rate=lr,
        lr_scheduler_type=config.schedule if config.schedule != "constant" else "constant_with_warmup",
        warmup_steps=round(config.warmup * steps),
        optim={"adafactor": "adafactor", "adamw": "adamw_torch"}[config.optimizer],
        weight_decay=0.0,
        max_grad_norm=config.clip,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",  # a callback saves by the clock
        save_total_limit=1,
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        **(_checkpointing() if config.gradient_checkpointing else {}),
    )
    # A process that sees several GPUs would share its batches out to all of them (DataParallel); no argument forbids it
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _checkpointing() -> dict[str, Any]:
    """Turn gradient checkpointing on under the name that this transformers knows it by."""
    known = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def devices_used(config: TuneConfig, visible: int) -> int:
    """Return how many devices a batch's micro-batches can be shared out to evenly, at least 1."""
    parts = config.batch // config.micro_batch
    return max(number for number in range(1, max(visible, 1) + 1) if parts % number == 0)
