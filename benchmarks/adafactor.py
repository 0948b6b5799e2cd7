"""Time transformers' Adafactor over stacks of experts, with 4 kB pages and with huge ones, each in its own process.

    python benchmarks/adafactor.py

Floor: the step reads weight and gradient and writes the weight, 12 bytes a parameter in fp32.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

EXPERTS, FFN, HIDDEN, STACKS, STEPS = 7, 1536, 576, 9, 5
PROCESSES = 3


def measure() -> None:
    """Print the nanoseconds a parameter of the fastest step."""
    import torch
    from transformers.optimization import Adafactor

    from xft.memory import keep_heap_compact

    keep_heap_compact()
    stacks = [torch.nn.Parameter(torch.randn(EXPERTS, FFN, HIDDEN)) for _ in range(STACKS)]
    optimizer = Adafactor(stacks, lr=1e-4, scale_parameter=False, relative_step=False)
    times = []
    for _ in range(STEPS):
        for stack in stacks:
            stack.grad = torch.randn_like(stack)
        began = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - began)
    print(min(times[1:]) / sum(stack.numel() for stack in stacks) * 1e9)


def main() -> None:
    """Alternate between the two and print a table."""
    found: dict[str, list[float]] = {"0": [], "1": []}
    for _ in range(PROCESSES):
        for huge, times in found.items():
            environment = os.environ | {"THP_MEM_ALLOC_ENABLE": huge}
            command = [sys.executable, __file__, "measure"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            times.append(float(done.stdout))
    small, large = min(found["0"]), min(found["1"])
    print(f"4 kB pages {small:.2f} ns a parameter, huge pages {large:.2f}, ratio {large / small:.2f}")


if __name__ == "__main__":
    measure() if sys.argv[1:] == ["measure"] else main()
