"""Run candidates in confinement: Python programs, calls of their functions, and commands of other languages."""

from xft.eval.sandbox.outcome import Call, Level, Outcome, Returned, Status, Step
from xft.eval.sandbox.sandbox import Sandbox, detect_level

__all__ = ["Call", "Level", "Outcome", "Returned", "Sandbox", "Status", "Step", "detect_level"]
