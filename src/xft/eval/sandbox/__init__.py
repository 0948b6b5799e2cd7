"""Run candidates in confinement: Python programs, calls of their functions, and commands of other languages."""

from xft.eval.sandbox.sandbox import Outcome, Sandbox

__all__ = ["Outcome", "Sandbox"]
