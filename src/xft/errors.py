"""The errors a user can meet; each message names the file, key or tensor and the remedy.

XftError                 the command line prints one line and exits with 2
├── RecipeError          the recipe is wrong; the message has the path inside it
├── DataError            instruction data or a benchmark is missing, empty or malformed
├── CheckpointError      a model is missing, truncated, of an unknown family, or holds NaN
│   └── ProofError       an upcycled model does not compute what its dense parent computes
├── RunError             a run directory is locked, holds something else, or needs a decision
│   └── BusyError        another process is writing there
├── FetchError           something that must come from a registry or a hub could not be had
├── MissingExtraError    an optional dependency is not installed
├── DivergedError        a non-finite loss or gradient; the message has the step
├── SandboxError         the project's own sandbox failed; never counted as a wrong answer
└── UnknownNameError     a name that no registry entry has; the message lists those there are
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return `; did you mean ...?` for a name that is nearly a known one, else nothing."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


class XftError(Exception):
    """Stop with a message for the user; anything else that escapes is a bug."""


class RecipeError(XftError):
    """Report a recipe key that is unknown, mistyped or out of range."""


class DataError(XftError):
    """Report data that is missing, empty or malformed."""


class CheckpointError(XftError):
    """Report a checkpoint that cannot be used."""


class ProofError(CheckpointError):
    """Report an upcycled model that differs from its dense parent."""


class RunError(XftError):
    """Report a run directory or an output folder that cannot be written as asked."""


class BusyError(RunError):
    """Report a folder that another process holds."""


class FetchError(XftError):
    """Report a file that could not be fetched, or that is not the one expected."""


class MissingExtraError(XftError):
    """Report an optional dependency that is not installed."""


class DivergedError(XftError):
    """Report a loss or gradient that is not finite, before the weights see it."""


class SandboxError(XftError):
    """Report a fault of the sandbox itself."""


class UnknownNameError(XftError):
    """Report a name that is not in a registry."""
