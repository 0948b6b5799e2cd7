"""The stage `curate`: filter, deduplicate, decontaminate, mix; every decision written down.

Work goes through shards, the same whatever the number of workers. What is known of a shard lies in `work/` of the
partial folder and is written in one step, so a kill costs the shards in progress; the output is put together from these
files in the shards' order at the end.

    work/filter/N.kept.jsonl     records that passed the steps, with their keys and signatures beside them
    work/filter/N.rejects.jsonl  records that did not
    work/duplicates.npz          which record of each cluster stays
    work/contamination/N.json    what matched a benchmark
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xft.curate import dedup
from xft.curate.classifier import models_of
from xft.curate.config import CurateConfig, Curation, DedupConfig
from xft.curate.mix import token_counter
from xft.curate.pool import each_done
from xft.curate.read import Shard, parse_line, plan_shards, read_shard, record_line
from xft.curate.step import BoundStep, build_steps, try_steps
from xft.data.example import Example
from xft.data.sources import Rejected
from xft.errors import DataError
from xft.progress import track
from xft.stage import file_digest, read_json, write_json

KEPT = {"pairs": "train.jsonl", "text": "documents.jsonl"}
REJECTS, MATCHES, STATISTICS = "rejects.jsonl", "contamination.jsonl", "statistics.json"
LOOKED_THROUGH = 1 << 20
"""Characters of a rejected record in which what must not be published is looked for."""
BATCH = 1000
"""Records whose signatures are made together."""
READ, EXACT, NEAR, CONTAMINATION, MIX = "read", "exact-duplicate", "near-duplicate", "contamination", "mix"
NO_PLACE = "no place in the mix"


@dataclass(frozen=True, kw_only=True)
class CurateJob:
    """What to do, and where."""

    config: CurateConfig
    out: Path
    """The folder to fill; called again on the same one after an interruption."""
    seed: int
    workers: int
    allow_unsafe: bool = False
    """Run answers against benchmarks' tests even where no sandbox works."""

    @property
    def work(self) -> Path:
        """Return the folder of what is known so far."""
        return self.out / "work"


def curate(job: CurateJob) -> dict[str, Any]:
    """Fill the job's folder; return its statistics.

    Raises:
        DataError: a source that is not there, or nothing that is kept.
        MissingExtraError: a step needs a library that is not installed.
        RunError: a worker process died.
    """
    if (job.out / STATISTICS).is_file():  # written last
        shutil.rmtree(job.work, ignore_errors=True)
        return dict(read_json(job.out / STATISTICS, {}))
    require_libraries(job.config)
    shards = plan_shards(job.config.sources)
    _filter(job, shards)
    duplicates = _deduplicate(job, shards)
    from xft.curate.assemble import assemble

    _decontaminate(job, shards, duplicates)
    statistics = assemble(job, shards, duplicates)
    write_json(job.out / STATISTICS, statistics)
    shutil.rmtree(job.work)
    return statistics


def require_libraries(curation: Curation) -> None:
    """Try all steps, so that what they lack shows before any work is done.

    Raises:
        MissingExtraError: a library is not installed.
        DataError: a file that a step reads can't be read.
        RecipeError: settings that a step does not take.
    """
    try_steps(build_steps(curation.steps, curation.kind))
    token_counter(curation.mix)
    if curation.dedup.near:
        dedup.rensa()


def files_of(curation: Curation) -> dict[str, str]:
    """Return the digests of the files that steps and mixing read beside the records."""
    tokenizers = [Path(curation.mix.tokenizer)] if curation.mix.tokenizer else []
    return models_of(curation.steps) | {str(path): file_digest(path) for path in tokenizers if path.is_file()}


# --- filter -----------------------------------------------------------------------------------------------------------


def _filter(job: CurateJob, shards: Sequence[Shard]) -> None:
    folder = job.work / "filter"
    folder.mkdir(parents=True, exist_ok=True)
    left = [shard for shard in shards if not _known(folder, shard).is_file()]
    total = sum(shard.size for shard in shards)
    with track("filter", total, done=total - sum(shard.size for shard in left)) as advance:
        for shard, kept in each_done(partial(filter_shard, job), left, job.workers):
            advance(shard.size, f"{kept} kept of {Path(shard.path).name}")


def filter_shard(job: CurateJob, shard: Shard) -> int:
    """Let the records of a shard go through the steps; return how many are kept."""
    stem = job.work / "filter" / f"{shard.number:06d}"
    steps = build_steps(job.config.steps, job.config.kind)
    dropped: Counter[tuple[str, str]] = Counter()
    read = 0
    with (
        open(f"{stem}.kept.jsonl", "wb") as kept,
        open(f"{stem}.rejects.jsonl", "wb") as rejects,
        _Signer(stem, job.config.dedup) as signer,
    ):
        for item in read_shard(shard, job.config.sources[shard.source], job.config.kind):
            read += 1
            line, reject = _judge(item, steps)
            if reject:
                dropped[reject["step"], reject["reason"]] += 1
                rejects.write(reject_line(reject))
            elif isinstance(item, Example):
                kept.write(line)
                signer.add(item)
    counts = [[*key, count] for key, count in sorted(dropped.items())]
    write_json(_known(stem.parent, shard), {"read": read, "kept": signer.count, "dropped": counts})
    return signer.count


def _judge(item: Example | Rejected, steps: Sequence[BoundStep]) -> tuple[bytes, dict[str, Any] | None]:
    """Return a record's line, or why it is rejected."""
    if isinstance(item, Rejected):
        hides = any(step.step.private for step in steps)  # which could not find anything in what can't be read
        shown = {} if hides else {"record": item.record}
        return b"", {"source": item.where, "step": READ, "reason": item.reason, **shown}
    try:
        line = record_line(item)
    except (ValueError, RecursionError):
        return b"", {"source": item.source, "step": READ, "reason": "no valid Unicode, or nested too deeply"}
    for step in steps:
        if reason := step(item):
            hides = step.step.private or _may_hide(item, steps)
            return b"", rejected(item, step.name, reason, private=hides)
    return line, None


def _may_hide(record: Example, steps: Sequence[BoundStep]) -> bool:
    """Tell whether a rejected record is not to be shown; one that is too long to be looked through is not either."""
    private = [step for step in steps if step.step.private]
    return bool(private) and (
        len(record.instruction) + len(record.response) > LOOKED_THROUGH or any(step(record) for step in private)
    )


def rejected(record: Example, step: str, reason: str, *, private: bool = False, **more: Any) -> dict[str, Any]:
    """Return what is written down of a rejected record: itself too, unless it holds what must not be spread."""
    fields = {"instruction": record.instruction, "response": record.response, "source": record.source}
    whole = {} if private else {"record": fields | {"meta": record.meta}}
    return {"source": record.source, "step": step, "reason": reason, **more, **whole}


def reject_line(reject: dict[str, Any]) -> bytes:
    """Return a line of rejects.jsonl."""
    return json.dumps(reject, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace") + b"\n"


class _Signer:
    """Writes keys and signatures of records beside them, a batch at a time."""

    def __init__(self, stem: Path, config: DedupConfig) -> None:
        self.stem, self.config = stem, config
        self.count = 0
        self.batch: list[Example] = []

    def __enter__(self) -> _Signer:
        self.keys, self.signatures = open(f"{self.stem}.keys", "wb"), open(f"{self.stem}.signatures", "wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self.keys.close()
        self.signatures.close()

    def add(self, record: Example) -> None:
        """Take a record."""
        self.count += 1
        self.batch.append(record)
        if len(self.batch) == BATCH:
            self._flush()

    def _flush(self) -> None:
        if self.config.exact or self.config.near:
            self.keys.write(np.array([dedup.exact_key(record) for record in self.batch], np.uint64).tobytes())
        if self.config.near:
            texts = [dedup.text_of(record) for record in self.batch]
            self.signatures.write(dedup.signatures(texts, self.config).tobytes())
        self.batch.clear()


def _known(folder: Path, shard: Shard) -> Path:
    """Return the file that is there when all is known of a shard."""
    return folder / f"{shard.number:06d}.json"


# --- deduplicate ------------------------------------------------------------------------------------------------------


def _deduplicate(job: CurateJob, shards: Sequence[Shard]) -> dedup.Duplicates:
    """Find duplicates over all shards; starts over when it is interrupted."""
    config, path = job.config.dedup, job.work / "duplicates.npz"
    if not (config.exact or config.near):
        count = sum(read_json(_known(job.work / "filter", shard), {})["kept"] for shard in shards)
        return dedup.Duplicates(original=np.arange(count), near=np.zeros(count, bool))
    if not path.is_file():
        with track("duplicates", len(shards)) as advance, dedup.Index(job.work / "index", config) as index:
            for shard in shards:
                stem = job.work / "filter" / f"{shard.number:06d}"
                keys = np.fromfile(f"{stem}.keys", np.uint64)
                signed = np.fromfile(f"{stem}.signatures", np.uint32) if config.near else None
                index.add(keys, None if signed is None else signed.reshape(len(keys), config.permutations))
                advance(1)
            found = index.find()
        with path.with_suffix(".new").open("wb") as file:
            np.savez(file, original=found.original, near=found.near)
        path.with_suffix(".new").replace(path)
        shutil.rmtree(job.work / "index")
    with np.load(path, allow_pickle=False) as arrays:
        return dedup.Duplicates(original=arrays["original"], near=arrays["near"])


# --- decontaminate ----------------------------------------------------------------------------------------------------


def _decontaminate(job: CurateJob, shards: Sequence[Shard], duplicates: dedup.Duplicates) -> None:
    """Compare what is left with the benchmarks."""
    if job.config.decontaminate is None:
        return
    folder = job.work / "contamination"
    folder.mkdir(parents=True, exist_ok=True)
    alive = duplicates.original == np.arange(len(duplicates.original))
    items, start, done = [], 0, 0
    for shard in shards:
        count = shard_counts(job, shard)["kept"]
        here = alive[start : start + count]
        start += count
        if _known(folder, shard).is_file():
            done += int(here.sum())
        else:
            items.append((shard, here))
    with track("benchmarks", int(alive.sum()), done=done) as advance:
        for (_, here), found in each_done(partial(compare_shard, job), items, job.workers):
            advance(int(here.sum()), f"{found} matches" if found else "")


def compare_shard(job: CurateJob, item: tuple[Shard, NDArray[np.bool_]]) -> int:
    """Compare the wanted records of a shard with the benchmarks; return how many match one."""
    from xft.curate.matches import matches_of

    assert job.config.decontaminate is not None
    shard, wanted = item
    found = {}
    for place, record in kept_records(job, shard, wanted):
        if findings := matches_of(record, job.config.decontaminate, allow_unsafe=job.allow_unsafe):
            found[place] = [asdict(finding) for finding in findings]
    write_json(_known(job.work / "contamination", shard), found)
    return len(found)


def shard_findings(job: CurateJob, shard: Shard) -> dict[int, list[dict[str, Any]]]:
    """Return what matched benchmarks in a shard, by place."""
    return {int(place): found for place, found in read_json(_known(job.work / "contamination", shard), {}).items()}


# --- going through what is kept ---------------------------------------------------------------------------------------


def kept_lines(job: CurateJob, shard: Shard) -> Iterator[bytes]:
    """Yield the lines of a shard that passed the steps."""
    with (job.work / "filter" / f"{shard.number:06d}.kept.jsonl").open("rb") as lines:
        yield from lines


def kept_records(job: CurateJob, shard: Shard, wanted: NDArray[np.bool_]) -> Iterator[tuple[int, Example]]:
    """Yield the wanted records of a shard with their place in it."""
    for place, line in enumerate(kept_lines(job, shard)):
        if wanted[place]:
            yield place, parse_line(line)


def shard_counts(job: CurateJob, shard: Shard) -> dict[str, Any]:
    """Return what filtering counted in a shard."""
    return dict(read_json(_known(job.work / "filter", shard), {}))


def nothing_kept(statistics: dict[str, Any]) -> DataError:
    """Return the error for an empty result."""
    reasons = Counter(
        {f"{step['step']}: {reason}": n for step in statistics["steps"] for reason, n in step["reasons"].items()}
    )
    most = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3)) or "the sources are empty"
    return DataError(f"none of {statistics['read']} records is kept: {most}")
