"""The benchmarks; importing this package registers them all in BENCHMARKS."""

from xft.eval.benchmark import BENCHMARKS
from xft.eval.benchmarks import humaneval

__all__ = ["BENCHMARKS", "humaneval"]
