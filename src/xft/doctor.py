"""`xft doctor`: what works on this machine, what is missing, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from xft.errors import XftError
from xft.fetch import cache_dir

SIDES = (256, 2048)
"""Rows and columns of the matrices whose product is timed; the larger ones where that takes seconds at most."""
PRODUCT_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the examination."""

    part: str
    """Machine, Device, Sandbox or Benchmarks."""
    subject: str
    state: Literal["ok", "missing"]
    detail: str
    """What was found; where something is missing, the remedy."""


def examine() -> Iterator[Finding]:
    """Look at one thing after the other; compilers and libraries prove themselves on programs, which takes seconds."""
    yield from _machine()
    yield from _device()
    yield from _scoring()


def _ok(part: str, subject: str, detail: str) -> Finding:
    return Finding(part=part, subject=subject, state="ok", detail=detail)


def _missing(part: str, subject: str, detail: str) -> Finding:
    return Finding(part=part, subject=subject, state="missing", detail=detail)


def _machine() -> Iterator[Finding]:
    cache = cache_dir()
    there = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    yield _ok("Machine", "Python", f"{platform.python_version()} on {platform.system()} {platform.release()}")
    yield _ok("Machine", "processors", str(len(os.sched_getaffinity(0))))
    yield _ok("Machine", "memory", _memory())
    yield _ok("Machine", "cache", f"{cache}, {shutil.disk_usage(there).free / 1e9:.0f} GB free")


def _memory() -> str:
    """Say what the kernel has to give; a container's own limit is not looked at."""
    sizes: dict[str, int] = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, size = line.partition(":")
        sizes[name] = int(size.split()[0]) * 1024
    return f"{sizes['MemTotal'] / 1e9:.1f} GB, {sizes['MemAvailable'] / 1e9:.1f} GB available"


def _device() -> Iterator[Finding]:
    if find_spec("torch") is None:
        yield _missing("Device", "torch", "not installed, so nothing can be trained: pip install 'xft[train]'")
        return
    import torch

    from xft.device import compute_dtype, describe_device

    yield _ok("Device", "torch", torch.__version__)
    yield _ok("Device", "device", describe_device())
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        chosen = ", what `auto` means here" if compute_dtype("auto") == dtype else ""
        yield _ok("Device", name, f"{_product_rate(name) / 1e12:.2g} TFLOP/s in a matrix product{chosen}")


def _product_rate(dtype: str) -> float:
    """Return the FLOP/s of a product of two square matrices, as large as the device can multiply in a moment."""
    import torch

    from xft.device import device

    for side in SIDES:
        left = torch.randn(side, side, device=device()).to(getattr(torch, dtype))
        products, began, seconds = 0, 0.0, 0.0
        while seconds <= PRODUCT_SECONDS:
            product = left @ left
            float(product[0, 0])  # waits for the device
            now = time.perf_counter()
            began = began or now  # the first one warms up
            products, seconds = products + 1, now - began
        rate = 2.0 * side**3 * (products - 1) / seconds
        if 2.0 * SIDES[-1] ** 3 / rate > 10 * PRODUCT_SECONDS:
            break  # a CPU without instructions for the type would take minutes for the next
    return rate


def _scoring() -> Iterator[Finding]:
    from xft.eval.benchmarks import BENCHMARKS
    from xft.eval.sandbox import Sandbox

    try:
        with Sandbox() as sandbox:
            yield _ok("Sandbox", "level", sandbox.reason)
    except XftError as error:
        yield _missing("Sandbox", "none", str(error))
        return
    for benchmark in BENCHMARKS.values():
        no_data = ""
        try:
            problems = benchmark.problems()
            yield _ok("Benchmarks", benchmark.name, f"{len(problems)} problems, data {benchmark.data_hash()[:12]}")
        except XftError as error:
            no_data = str(error).removeprefix(f"{benchmark.name}: ").partition(", or make the hub's")[0]
            yield _missing("Benchmarks", benchmark.name, no_data)
        try:
            with benchmark.sandbox() as sandbox:
                tools = benchmark.tools(sandbox)  # compilers prove themselves without the benchmark's data too
        except XftError as error:
            if not no_data:
                yield _missing("Benchmarks", benchmark.name, str(error).removeprefix(f"{benchmark.name}: "))
            continue
        for tool in tools:
            subject = f"  {tool.name} {tool.version}".rstrip()
            if tool.fault:
                yield _missing("Benchmarks", subject, tool.fault)
            else:
                yield _ok("Benchmarks", subject, "proved on known programs")
