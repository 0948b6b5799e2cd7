"""The stage `tune`: instruction-tune a checkpoint, dense or mixture, on one device or several."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, set_seed
from transformers.utils import logging as transformers_logging

from xft.cards import write_mixture_card
from xft.checkpoint import (
    Checkpoint,
    Planned,
    copy_companions,
    finite,
    named_as_stored,
    require_disk,
    write_checkpoint,
    write_config,
)
from xft.cost import count
from xft.data.prepare import read_pairs
from xft.device import compute_dtype, describe_device
from xft.errors import DivergedError, RecipeError, RunError
from xft.eval.sandbox.confine import PR_SET_PDEATHSIG, prctl
from xft.memory import keep_heap_warm
from xft.moe.mixture import Mixture, is_mixture
from xft.moe.slices import ungated
from xft.prompts import tokenizer_of
from xft.recipe import TuneConfig
from xft.stage import Meter, read_json, write_json
from xft.tune.callbacks import (
    BiasBalance,
    DivergenceGuard,
    ExpertAveraging,
    MetricsFile,
    ResumePoints,
    ShowProgress,
    last_resume_point,
)
from xft.tune.dataset import Collator, OrderedRows, encode_all, training_order
from xft.tune.trainer import ROUTED, ResponseTrainer, devices_used, training_arguments

RESUME = "resume"


@dataclass(frozen=True, kw_only=True)
class TuneJob:
    """All that a tuning needs; goes to worker processes as JSON."""

    model: str
    pairs: str
    """JSONL file of prepared pairs."""
    out: str
    prompt: str
    epochs: int
    lr: float
    seed: int
    config: dict[str, Any]
    label: str = "tune"
    section: str = "tune"
    """The recipe's that has the learning rate, for messages."""


def tune(job: TuneJob, meter: Meter, *, processes: int | None = None) -> None:
    """Tune in this process, or in one process a GPU when several are visible; fills the job's `out` folder.

    As many GPUs are used as the batch's micro-batches can be shared out to evenly.

    Raises:
        DivergedError: a loss or gradient that is not finite.
        RunError: a worker process failed.
    """
    out = Path(job.out)
    processes = processes or _processes(job)
    if processes == 1:
        train(job)
    else:
        _launch(job, processes)
    summary = read_json(out / "summary.json", {})
    meter.tokens, meter.flops = summary["tokens"], summary["flops"]
    meter.device, meter.dtype = summary["device"], summary["dtype"]


def _processes(job: TuneJob) -> int:
    config, visible = TuneConfig(**job.config), torch.cuda.device_count()
    used = devices_used(config, visible)
    if used < visible:
        parts = f"tune.batch={config.batch} in parts of tune.micro_batch={config.micro_batch}"
        print(f"{job.label}: on {used} of {visible} GPUs: {parts} can't be shared out to more evenly", file=sys.stderr)
    return used


def _launch(job: TuneJob, processes: int) -> None:
    last_resume_point(Path(job.out) / RESUME)  # removes unfinished ones before there are several processes
    spec = Path(job.out) / "job.json"
    write_json(spec, asdict(job))
    # Not accelerate's launcher: on CPUs it starts one process, whatever it is told, and it heeds a user's config file
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))} | dict(os.environ)
    command += ["-m", "xft.tune.tune", str(spec)]
    # When this process is killed the launcher gets SIGTERM, at which it ends its workers
    ending = partial(prctl, PR_SET_PDEATHSIG, signal.SIGTERM) if sys.platform == "linux" else None
    # A session of its own, so that Ctrl-C reaches it once, from here
    launcher = subprocess.Popen(command, env=threads, preexec_fn=ending, start_new_session=True)
    try:
        code = launcher.wait()
    except KeyboardInterrupt:
        launcher.terminate()  # it passes the signal on, and gives its workers half a minute for their resume point
        launcher.wait()
        raise
    if code:
        if (Path(job.out) / "diverged.json").exists():
            raise DivergedError(read_json(Path(job.out) / "diverged.json", {})["message"])
        raise RunError(f"{job.out}: a training process failed (exit code {code}); its message is above")
    spec.unlink()


def train(job: TuneJob) -> None:
    """Train and write the result; called in every process of a distributed run."""
    quiet()
    out, config = Path(job.out), TuneConfig(**job.config)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    source = Checkpoint(job.model)
    _ = source.family  # a clear error for a model that is quantised or of no known family
    if config.average_experts and is_mixture(source) and not Mixture(job.model).layout.copies:
        layout = source.config["xft"]["layout"]
        raise RecipeError(f"tune.average_experts averages copies; {job.model} has the layout {layout}, without any")
    keep_heap_warm()
    require_disk(out, 2 * _fp32_bytes(source))  # a resume point and the result
    tokenizer = tokenizer_of(job.model)
    rows, counts = encode_all(read_pairs(Path(job.pairs)), tokenizer, job.prompt, config.max_length)
    order = training_order(rows, epochs=job.epochs, batch=config.batch, seed=job.seed)
    dtype = compute_dtype(config.precision)

    set_seed(job.seed)
    # fp32 master weights: bf16 ones would round small updates away
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        finite(parameter.detach(), name)
    if is_mixture(source):
        freeze(model, config.train)
    cost = count(model)
    steps = -(-len(order) // config.batch)
    arguments = training_arguments(
        config, out, lr=job.lr, steps=steps, processes=processes, bf16=dtype == torch.bfloat16, seed=job.seed
    )
    trainer = ResponseTrainer(
        model=model,
        args=arguments,
        train_dataset=OrderedRows(rows, order),
        data_collator=Collator(
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0, numbered=bool(ungated(model))
        ),
        config=config,
        section=job.section,
    )
    metrics = MetricsFile(out, lambda seconds: trainer.measure(seconds, len(rows)))
    callbacks = [DivergenceGuard(job.section), BiasBalance(trainer), metrics, ShowProgress(job.label)]
    if config.average_experts:
        callbacks.append(ExpertAveraging(config.average_experts))
    points = ResumePoints(config.checkpoint_minutes)
    for callback in (*callbacks, points):
        trainer.add_callback(callback)
    with points.heeding_signals():
        trainer.train(resume_from_checkpoint=last_resume_point(out / RESUME))
    if not trainer.is_world_process_zero():
        return
    rounding = save_tuned(trainer.accelerator.unwrap_model(trainer.model), source, out)
    positions = int(metrics.totals["positions"])
    mean_length = sum(len(row.tokens) for row in rows) / len(rows)
    write_json(
        out / "summary.json",
        {
            **counts, "steps": steps, "epochs": job.epochs, "tokens": int(metrics.totals["tokens"]),
            "positions": positions, "parameters": cost.parameters, "active_parameters": cost.active,
            "flops": cost.training_flops(positions, int(metrics.totals["tokens"]), mean_length),
            "processes": processes, "device": describe_device(), "dtype": str(dtype).removeprefix("torch."),
            "rounding_error": rounding,
        },
    )  # fmt: skip
    shutil.rmtree(out / RESUME, ignore_errors=True)


def freeze(model: nn.Module, train: str) -> None:
    """Leave gradients to what the recipe's key `tune.train` names.

    Raises:
        RecipeError: there is no such thing.
    """
    parts = {"all": ("",), "experts": (ROUTED, ".router."), "routers": (".router.",)}[train]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RecipeError(f"tune.train={train} leaves nothing to train: its router has no gate")


def save_tuned(model: Any, source: Checkpoint, out: Path) -> float:
    """Write a tuned model beside its companions; return the largest rounding error of a weight.

    A dense model is written in its checkpoint's dtype; a mixture in fp32, since the merge reads its small differences.
    """
    mixture = is_mixture(source)
    dtype = torch.float32 if mixture else source.dtype(source.family.embedding)
    named = named_as_stored(model, source.family)
    state = {name: tensor.detach() for name, tensor in named if name in source}
    plan = [
        Planned(name=name, shape=tuple(tensor.shape), dtype=dtype, make=partial(_checked, tensor, name))
        for name, tensor in state.items()
    ]
    write_checkpoint(out, plan)
    copy_companions(source.folder, out)
    config = source.config | {"dtype": str(dtype).removeprefix("torch.")}
    write_config(out, config)
    if mixture:
        write_mixture_card(out, config, tuned=True)
    if dtype == torch.float32:
        return 0.0
    return max(float((tensor - tensor.to(dtype)).abs().max()) for tensor in state.values())


def _checked(tensor: torch.Tensor, name: str) -> list[torch.Tensor]:
    return [finite(tensor.cpu(), name)]


def quiet() -> None:
    """Silence transformers' own bars and hints; xft shows its own."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def _fp32_bytes(source: Checkpoint) -> int:
    return sum(4 * torch.Size(source.shape(name)).numel() for name in source.names())


if __name__ == "__main__":  # a worker process of `_launch`
    import xft  # noqa: F401  (registers the mixture classes)

    _job = TuneJob(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    try:
        train(_job)
    except DivergedError as _error:
        write_json(Path(_job.out) / "diverged.json", {"message": str(_error)})
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
