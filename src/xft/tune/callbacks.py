"""What watches a training run: divergence guard, metrics file, progress, resume points by the clock."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from xft.errors import DivergedError
from xft.moe.layer import Experts, Router
from xft.progress import Advance, track

METRICS = "metrics.jsonl"


class DivergenceGuard(TrainerCallback):
    """Stop before a gradient that is not finite reaches the weights; `section` is the recipe's with the rate."""

    def __init__(self, section: str = "tune") -> None:
        self.section = section

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Check every gradient."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        if not torch.isfinite(norm):
            raise DivergedError(
                f"step {state.global_step + 1}: the gradient's norm is {float(norm)}; lower {self.section}.lr"
            )


class MetricsFile(TrainerCallback):
    """Write one line a step to metrics.jsonl, each step once however often the run was interrupted."""

    def __init__(self, folder: Path, measure: Callable[[float], dict[str, Any]]) -> None:
        self.path = folder / METRICS
        self.measure = measure
        """Gives what the trainer knows of the step that ended, told the step's seconds."""
        self.began = 0.0
        self.totals: dict[str, float] = {"tokens": 0, "seconds": 0.0, "positions": 0}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop lines of steps that will be done again, and go on from the totals of the last one that stays."""
        if not state.is_world_process_zero:  # one process writes the file
            return
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in lines if _step(line) is not None and (_step(line) or 0) <= state.global_step]
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        if kept:
            last = json.loads(kept[-1])
            self.totals = {key: last.get(key, 0) for key in self.totals}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the step's clock."""
        self.began = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Append the step's line."""
        if not logs or "loss" not in logs:
            return
        seconds = time.monotonic() - self.began
        measured = self.measure(seconds)  # in every process, since it starts the counts anew
        if not state.is_world_process_zero:
            return
        self.totals["seconds"] = round(self.totals["seconds"] + seconds, 3)
        for key in ("tokens", "positions"):
            self.totals[key] += measured.pop(key, 0)
        line = {
            "step": state.global_step, "loss": logs["loss"], "lr": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"), **self.totals, **measured,
        }  # fmt: skip
        with self.path.open("a", encoding="utf-8") as sink:
            sink.write(json.dumps(line) + "\n")


class BiasBalance(TrainerCallback):
    """Move the choice bias of each expert against its load after each step (DeepSeek-V3's balance without a loss)."""

    SPEED = 1e-3

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Raise the bias of experts that got less than the mean, lower that of the others."""
        counts_LR = self.trainer.health.counts
        routers = [module for module in model.modules() if isinstance(module, Router)]
        if counts_LR is None or all(router.bias_R is None for router in routers):
            return
        counts_LR = self.trainer.accelerator.reduce(counts_LR, "sum")
        if len(routers) == 1:  # it routes all layers
            counts_LR = counts_LR.sum(0, keepdim=True)
        for router, counts_R in zip(routers, counts_LR.float(), strict=True):
            if router.bias_R is not None:
                router.bias_R += self.SPEED * (counts_R.mean() - counts_R).sign().to(router.bias_R)


class ExpertAveraging(TrainerCallback):
    """Move each routed expert towards the mean of the others after each step (EWA, arXiv 2308.06093)."""

    def __init__(self, share: float) -> None:
        self.share = share

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Change the experts in place: `W_i <- (1 - b) W_i + b mean of W_j, j != i`, over copies of the same part."""
        for experts in (module for module in model.modules() if isinstance(module, Experts)):
            for stack_R in experts.parameters():
                for part in range(experts.parts):
                    self._average(stack_R[part :: experts.parts])

    def _average(self, copies: torch.Tensor) -> None:
        others = len(copies) - 1
        if others:
            total = copies.sum(0)
            for expert in copies:
                expert.mul_(1.0 - self.share - self.share / others).add_(total, alpha=self.share / others)


def _step(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):  # a line that a kill cut short
        return None


class ShowProgress(TrainerCallback):
    """Show steps, loss and time left."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.loss = ""
        self.stack = ExitStack()
        self.advance: Advance | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar at the step where a resumed run goes on."""
        if state.is_world_process_zero:
            self.advance = self.stack.enter_context(track(self.label, state.max_steps, done=state.global_step))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Advance by the step that ended."""
        if self.advance and logs and "loss" in logs:
            self.advance(1, note=f"loss {logs['loss']:.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.stack.close()


class ResumePoints(TrainerCallback):
    """Ask for a resume point when the last one is older than some minutes, and before an interruption takes effect."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, minutes: float) -> None:
        self.seconds = minutes * 60
        self.saved = time.monotonic()
        self.interrupted = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save when interrupted, or when it is time and the run does not end with this step anyway."""
        due = time.monotonic() - self.saved >= self.seconds
        if args.world_size > 1:  # all processes must agree; a signal may have reached one before another
            asked = torch.tensor([self.interrupted, due], dtype=torch.float32, device=args.device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            self.interrupted, due = map(bool, asked.tolist())
        control.should_save = self.interrupted or (due and state.global_step < state.max_steps)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock anew, or end here."""
        self.saved = time.monotonic()
        if self.interrupted:
            raise KeyboardInterrupt

    @contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM end the training with a resume point after the step that runs; twice, at once."""
        if threading.current_thread() is not threading.main_thread():  # where Python sets no handlers
            yield
            return
        before = {each: signal.signal(each, self._interrupt) for each in self.SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _interrupt(self, *_: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        print("  interrupted: a resume point is saved after this step; once more ends at once", file=sys.stderr)


def last_resume_point(folder: Path) -> str | None:
    """Return the newest checkpoint that was written to its end, removing any that a kill cut short."""
    while folder.is_dir() and (newest := get_last_checkpoint(str(folder))):
        try:
            json.loads((Path(newest) / "trainer_state.json").read_text(encoding="utf-8"))  # written last
            return str(newest)
        except (OSError, ValueError):
            shutil.rmtree(newest)
    return None
