"""The benchmarks; importing this package registers them all in BENCHMARKS."""

from xft.eval.benchmark import BENCHMARKS
from xft.eval.benchmarks import ds1000, humaneval, mbpp, multipl_e, pairs

__all__ = ["BENCHMARKS", "ds1000", "humaneval", "mbpp", "multipl_e", "pairs"]
