"""The stage `synth`: what it is made of, which identifies it, and its work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xft.errors import MissingExtraError
from xft.eval.sandbox import Sandbox
from xft.stage import Meter, read_json
from xft.synth.check import Bench
from xft.synth.config import SeedSource, SynthConfig, TeacherConfig
from xft.synth.methods import METHODS
from xft.synth.seeds import read_seeds, seeds_digest
from xft.synth.statistics import summary
from xft.synth.store import Store
from xft.synth.synth import STATISTICS, SynthJob, synthesise
from xft.synth.teacher import open_teacher
from xft.synth.testing import TESTINGS


@dataclass(frozen=True, kw_only=True)
class SynthStage:
    """The stage, with its seeds read and its teacher open."""

    config: dict[str, Any]
    inputs: dict[str, str]
    work: Callable[[Path, Meter], None]
    close: Callable[[], None]
    """Lets go of the teacher."""


def open_stage(
    config: SynthConfig,
    seeds: Sequence[SeedSource],
    teacher: TeacherConfig,
    seed: int,
    *,
    store: Path,
    allow_unsafe: bool = False,
) -> SynthStage:
    """Read the seeds and open the teacher.

    Raises:
        DataError: no seed.
        FetchError: no server answers, or a model can't be had.
        MissingExtraError: solutions can't be run, or a local model not.
        RecipeError: options that don't fit the kind of teacher.
        UnknownNameError: no such method, or no such language to run.
    """
    checked = METHODS[config.method].checked and bool(config.check.languages)
    for language in config.check.languages:
        if fault := TESTINGS[language].fault():
            raise MissingExtraError(f"check.languages: {language}: {fault}")
    documents, skipped = read_seeds(seeds, config.licenses)
    asked = open_teacher(teacher, store)

    def work(partial: Path, meter: Meter) -> None:
        with ExitStack() as stack:
            bench = None
            if checked:
                sandbox = stack.enter_context(Sandbox(libraries=config.check.libraries, allow_unsafe=allow_unsafe))
                bench = Bench(sandbox=sandbox, level=sandbox.level, config=config.check, store=Store(store))
            job = SynthJob(
                config=config, seed=seed, documents=documents, skipped=skipped, teacher=asked, bench=bench,
                batch=teacher.batch,
            )  # fmt: skip
            synthesise(job, partial)
        meter.extra = {"teacher": {"name": asked.name, **asked.backend.settings()}}

    return SynthStage(
        config=config.model_dump() | {"prompt": asked.style, "batch": teacher.batch},
        inputs={"seeds": seeds_digest(documents), "teacher": Store.key(**asked.identity)},
        work=work,
        close=asked.backend.close,
    )


def report(out: Path, config: SynthConfig) -> None:
    """Print what a finished stage gave, and why it is less than was asked for."""
    figures: dict[str, Any] = read_json(out / STATISTICS, {})
    print(summary(figures))
    if figures["pairs"] < config.pairs and not config.limit:
        why = "ten tasks for each pair were begun" if figures["tasks"] >= config.attempts else "the seeds are used up"
        print(f"{out}: fewer pairs than asked for: {why}", file=sys.stderr)
