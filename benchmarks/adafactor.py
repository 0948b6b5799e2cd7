"""Time transformers' Adafactor over stacks of experts, with glibc's own heap and a warm one, each in its own process.

    python benchmarks/adafactor.py

Floor: the step reads weight and gradient and writes the weight, 12 bytes a parameter in fp32.
"""

from __future__ import annotations

import subprocess
import sys
import time

EXPERTS, FFN, HIDDEN, STACKS, STEPS = 7, 1536, 576, 9, 5
PROCESSES = 3


def measure(warm: bool) -> None:
    """Print the nanoseconds a parameter of the fastest step."""
    import torch
    from transformers.optimization import Adafactor

    from xft.memory import keep_heap_warm

    if warm:
        keep_heap_warm()
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
    found: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(PROCESSES):
        for heap, times in found.items():
            done = subprocess.run([sys.executable, __file__, heap], capture_output=True, text=True, check=True)
            times.append(float(done.stdout))
    cold, warm = min(found["cold"]), min(found["warm"])
    print(f"glibc's heap {cold:.2f} ns a parameter, warm heap {warm:.2f}, ratio {warm / cold:.2f}")


if __name__ == "__main__":
    measure(sys.argv[1] == "warm") if sys.argv[1:] else main()
