"""What a language is, to MultiPL-E."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from xft.eval.languages.layout import Files
from xft.eval.languages.toolchain import Finder, Toolchain, find_toolchain
from xft.eval.sandbox import Step


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A command; `{name}` in it stands for a program of the toolchain."""

    argv: tuple[str, ...]
    seconds: float
    """Wall-clock limit."""
    compile: bool = False
    """It prepares the program's run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """A small problem of the benchmark's form, a continuation that must pass, and one that must not."""

    stub: str
    tests: str
    good: str
    bad: str


@dataclass(frozen=True, kw_only=True)
class Language:
    """A language; `LANGUAGES` has them all."""

    name: str
    title: str
    """As a prompt calls it."""
    fence: str
    """The info string of a fenced block."""
    data: str
    """The benchmark's own name of the language."""
    package: str
    """What to install, as a message says it."""
    programs: Mapping[str, Finder]
    """How to find what commands name."""
    version: tuple[str, ...]
    """The command whose first line of output is the version."""
    commands: tuple[Command, ...]
    memory_mb: int
    """Resident memory for the program, and for the compiler."""
    signature: str
    """Pattern of a stub's last line; its group is the function's name."""
    definition: str
    """Pattern of where an answer defines the function NAME."""
    closed_by_tests: bool
    """The benchmark's tests begin with the brace that closes the function."""
    layout: Callable[[str, str, str, str], Files]
    """From program, function's name, tests and proof to the files to run; raises ShapeError."""
    join: Callable[[str, str, int], str]
    """From stub, an answer that defines the function, and the place where, to a program."""
    known: Known

    @cached_property
    def toolchain(self) -> Toolchain:
        """What this machine has; looked up once."""
        return find_toolchain(self.programs, self.version, self.package)

    def steps(self) -> list[Step]:
        """Return the commands that compile and run a program, as this machine must give them."""
        programs = self.toolchain.programs
        return [
            Step(argv=[part.format(**programs) for part in one.argv], seconds=one.seconds, compile=one.compile)
            for one in self.commands
        ]
