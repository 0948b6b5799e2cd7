"""Compare a record with the benchmarks in every way; what that needs is loaded once in each process."""

from __future__ import annotations

from functools import lru_cache, reduce
from operator import or_

from xft.curate.config import DecontaminateConfig
from xft.curate.contamination import NOTHING_TRIED, Finding, References, classify, load_references
from xft.curate.functional import Functional
from xft.curate.languages import Languages
from xft.data.example import Example
from xft.eval.functions import LIBRARIES
from xft.eval.sandbox import Sandbox


def matches_of(record: Example, config: DecontaminateConfig, *, allow_unsafe: bool = False) -> list[Finding]:
    """Return the problems that a record matches; `allow_unsafe` runs answers even where no sandbox works.

    Raises:
        UnknownNameError: no such benchmark.
        SandboxError: the sandbox failed, or none works.
    """
    references, ways = _loaded(config, allow_unsafe)
    tried = reduce(or_, (way.tried(record) for way in ways), NOTHING_TRIED)
    return classify(record, references, config, tried)


@lru_cache(maxsize=1)
def _loaded(
    config: DecontaminateConfig, allow_unsafe: bool
) -> tuple[References, tuple[Functional, Languages] | tuple[()]]:
    """Return what this process compares with, and what runs answers."""
    references, _ = load_references(config)
    if not (config.functional and references.all):
        return references, ()
    python = Functional(references, Sandbox(libraries=LIBRARIES, allow_unsafe=allow_unsafe))
    return references, (python, Languages(references, Sandbox(allow_unsafe=allow_unsafe)))
