"""What goes into the sandbox and what comes out: steps, calls, returned values, outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from xft.eval.sandbox.values import decode, encode

Level = Literal["namespaces", "landlock", "unsafe"]
Status = Literal["passed", "wrong", "failed", "timeout", "memory", "exited"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a candidate ended."""

    status: Status
    """wrong: an answer was judged wrong; failed: an exception, or a command that failed; exited: it ended too early."""
    seconds: float
    """Wall-clock time from the candidate's start."""
    error: str = ""
    """One line of printable text; written by the candidate where it failed, so not to be trusted."""
    at: int = -1
    """Index of the call or step at which it ended; -1: before the first one, or it passed."""
    strained: bool = False
    """It did not pass, and used at least 80% of a time limit: to be run again, alone, before it counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A command that runs in the working folder, where the files are."""

    argv: Sequence[str]
    """A name without "/" is looked up in the standard places; "./name" is in the working folder."""
    seconds: float
    compile: bool = False
    """It prepares a later step; what is wrong with the program it may also say on its output."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of the candidate's function. Keep it to call many candidates: its encoding is made once."""

    arguments: tuple[Any, ...]
    """Plain values, as `xft.eval.sandbox.values` encodes them."""
    seconds: float
    reply_bytes: int = field(default=1 << 24)
    """Room for the encoded answer; more is wrong."""

    @cached_property
    def encoded(self) -> bytes:
        """The arguments as they are sent."""
        return encode(self.arguments)


class UnreadableError(ValueError):
    """An answer is no encoding of a value; only something other than the sandbox's own code writes such."""


@dataclass(frozen=True, kw_only=True)
class Returned:
    """What a call gave back. It is decoded when it is looked at: an encoding that is known to be right need not be."""

    encoded: bytes

    @cached_property
    def value(self) -> Any:
        """A plain value, whatever the candidate returned.

        Raises:
            UnreadableError: there is none.
        """
        try:
            return decode(self.encoded)
        except Exception as error:
            raise UnreadableError from error
