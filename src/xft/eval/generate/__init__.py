"""Generation: from a benchmark's problems to samples.jsonl, by one of several back ends. Imports no torch."""

from xft.eval.generate.backend import BACKENDS, Answer, Ask, Backend, Sampling, open_backend
from xft.eval.generate.loop import generate

__all__ = ["BACKENDS", "Answer", "Ask", "Backend", "Sampling", "generate", "open_backend"]
