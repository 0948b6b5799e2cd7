"""The steps of `xft curate` as steps of a datatrove pipeline, whose executors run them locally, on Slurm or on Ray.

Only what looks at one record at a time is adapted: filters and decontamination. datatrove has its own stages for
deduplication over many machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

try:
    from datatrove.data import Document
    from datatrove.pipeline.filters.base_filter import BaseFilter
except ImportError:
    from xft.errors import MissingExtraError

    raise MissingExtraError("pipelines of datatrove need it: pip install 'xft[data,datatrove]'") from None

from xft.curate.config import CurateConfig, CurateSource, DecontaminateConfig
from xft.curate.contamination import benchmark_digests, benchmark_inputs, verdict
from xft.curate.matches import matches_of
from xft.curate.read import read_record
from xft.curate.step import BoundStep, build_steps
from xft.data.example import Example
from xft.data.sources import BadRecordError
from xft.errors import DataError

INSTRUCTION = "instruction"


class CurateFilter(BaseFilter):  # type: ignore[misc]
    """One step; the reason to leave a record out is the filter's, counted and written as datatrove does.

    A record in which a private step, this one or one of `private`, finds something is written without its text.
    """

    type = "filter"

    def __init__(self, step: BoundStep, exclusion_writer: Any = None, private: Sequence[BoundStep] = ()) -> None:
        self.step, self.private, self.name = step, tuple(private), f"xft {step.name}"
        super().__init__(exclusion_writer)

    def filter(self, doc: Any) -> bool | tuple[bool, str]:
        """Keep a document, or say why not; a private one that is left out loses its text."""
        record = to_example(doc)
        reason = self.step(record)
        if reason is None:
            return True
        if self.step.step.private or any(other(record) for other in self.private):
            doc.text, doc.metadata = "", {}
        return False, reason


class Decontaminate(BaseFilter):  # type: ignore[misc]
    """Leave out what matches a benchmark, as a recipe's `decontaminate` says; the reason is the match's class.

    Each worker reads the benchmarks' data for itself, from XFT_DATA, which must be those that are there where the
    pipeline is made.
    """

    type, name = "filter", "xft decontaminate"

    def __init__(
        self, config: DecontaminateConfig, exclusion_writer: Any = None, *, allow_unsafe: bool = False
    ) -> None:
        self.config, self.allow_unsafe = config, allow_unsafe
        self.data, self.compared = benchmark_digests(config), False
        super().__init__(exclusion_writer)

    def filter(self, doc: Any) -> bool | tuple[bool, str]:
        """Keep a document, or say why not.

        Raises:
            DataError: this worker has other benchmark data.
        """
        if not self.compared:
            own = benchmark_digests(self.config)
            if other := [name for name, digest in self.data.items() if own[name] != digest]:
                raise DataError(
                    f"decontaminate: this worker's data of {', '.join(other)} are not those where the pipeline was "
                    "made; set XFT_DATA to the same files for all workers"
                )
            self.compared = True
        kind = verdict(matches_of(to_example(doc), self.config, allow_unsafe=self.allow_unsafe))
        return (False, kind) if kind and (kind == "leak" or self.config.common == "drop") else True


def filters(
    config: CurateConfig, exclusion_writer: Any = None, *, allow_unsafe: bool = False
) -> list[CurateFilter | Decontaminate]:
    """Return the steps of a recipe, for `pipeline=[reader, *filters(config), writer]`; decontamination is the last.

    `allow_unsafe` runs answers against benchmarks' tests even where no sandbox works. Says which benchmarks' data are
    not in XFT_DATA.

    Raises:
        DataError: nothing is there to compare with.
        UnknownNameError: no such benchmark.
    """
    bound = build_steps(config.steps, config.kind)
    private = [step for step in bound if step.step.private]
    steps = [CurateFilter(step, exclusion_writer, private) for step in bound]
    if config.decontaminate is None:
        return [*steps]
    if set(benchmark_inputs(config.decontaminate).values()) <= {"none"}:  # it says which are compared in part
        raise DataError(
            "decontaminate: no benchmark's data are at hand; set XFT_DATA, here and for the workers, or "
            "set decontaminate to null"
        )
    return [*steps, Decontaminate(config.decontaminate, exclusion_writer, allow_unsafe=allow_unsafe)]


def reader_adapter(source: CurateSource, kind: str) -> Any:
    """Return the `adapter` of a datatrove reader: it reads a row as `xft curate` does, and skips what can't be read."""

    def adapt(_reader: Any, row: dict[str, Any], path: str, number: int | str) -> dict[str, Any]:
        try:
            example = read_record(row, f"{path}:{number}", source, kind)
        except BadRecordError:
            return {"text": ""}  # readers leave out what has no text, and count it
        document = to_document(example)
        return {"text": document.text, "id": document.id, "metadata": document.metadata}

    return adapt


def to_document(example: Example) -> Any:
    """Return a record as a document: the response is its text, the instruction goes to its metadata."""
    asked = {INSTRUCTION: example.instruction} if example.instruction else {}
    return Document(text=example.response, id=example.source, metadata={**example.meta, **asked})


def to_example(doc: Any) -> Example:
    """Return a document as a record."""
    meta = dict(doc.metadata)
    return Example(instruction=meta.pop(INSTRUCTION, ""), response=doc.text, source=doc.id, meta=meta)
