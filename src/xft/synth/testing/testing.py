"""What the execution check must know of a language. To add one: write a module here that registers a `Testing`, import
it in `__init__.py`, and give `tests/synth/test_testing.py` an example; its laws are checked there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xft.eval.sandbox import Outcome, Sandbox
from xft.registry import Registry

MOST_TESTS = 20
"""Tests that are looked at; further ones are left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """The tests of a solution."""

    setup: str
    """What the tests need: imports and values."""
    tests: tuple[str, ...]

    @property
    def text(self) -> str:
        """Return the tests as they stand in a file."""
        return "\n".join([*([self.setup] if self.setup else []), *self.tests])


@dataclass(frozen=True, kw_only=True)
class Testing:
    """A language that solutions can be checked in."""

    form: str
    """What a test is, for the prompt: such as "`assert` statement"."""
    outline: Callable[[str], str]
    """From a program to its functions and classes without their bodies; "" without any."""
    suite: Callable[[str, str], Suite]
    """From an answer and the solution to the tests in the answer, each once, without what the solution defines."""
    mutants: Callable[[str, int, int], list[str]]
    """From a program to so many different programs, each changed in one place, chosen by a seed."""
    run: Callable[[Sandbox, str, Suite, float, int], Outcome]
    """Runs a solution with tests below it; the rest are limits: seconds and megabytes."""
    expecting: Callable[[str, str], str | None] = lambda test, error: None
    """From a test that failed and its error to the test that expects what the solution gave; None where it can't be."""
    fault: Callable[[], str] = lambda: ""
    """Says what is missing on this machine, with the remedy."""


TESTINGS: Registry[Testing] = Registry("tested language", also=("off",))
