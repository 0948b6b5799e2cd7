"""Put the output together from what is known of each shard: records, rejects, statistics, data card."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import IO, Any

import numpy as np

from xft.curate import card, dedup, run
from xft.curate.contamination import Finding, coverage, verdict
from xft.curate.mix import choose, token_counter
from xft.curate.read import Shard, parse_line
from xft.curate.run import CONTAMINATION, EXACT, KEPT, MATCHES, MIX, NEAR, NO_PLACE, READ, REJECTS, CurateJob
from xft.curate.step import build_steps
from xft.progress import track

MOST_STATED = 200
"""Different licences, and languages, of a source that are counted one by one."""


def assemble(job: CurateJob, shards: Sequence[Shard], duplicates: dedup.Duplicates) -> dict[str, Any]:
    """Write records, rejects and the data card; return the statistics.

    Raises:
        DataError: nothing is kept.
    """
    tally = _Tally(job, shards)
    with _Pool(job) as pool:
        _go_through(job, shards, duplicates, tally, pool)
    if not pool.count:
        raise run.nothing_kept(tally.statistics())
    written = pool.write(tally)
    statistics = tally.statistics() | {"written": written}
    (job.out / "README.md").write_text(card.data_card(job, statistics), encoding="utf-8")
    return statistics


def _go_through(
    job: CurateJob, shards: Sequence[Shard], duplicates: dedup.Duplicates, tally: _Tally, pool: _Pool
) -> None:
    """Give the records to keep to the pool, write the rejects, count both."""
    index = np.arange(len(duplicates.original))
    named = dict.fromkeys(duplicates.original[duplicates.original != index].tolist(), "")
    with (
        track("output", len(shards)) as advance,
        (job.out / REJECTS).open("wb") as rejects,
        (job.out / MATCHES).open("wb") as matches,
    ):
        _copy_filtered(job, shards, rejects)
        start = 0
        for shard in shards:
            count = run.shard_counts(job, shard)["kept"]
            for reject in _rest_of(job, shard, start, duplicates, named, tally, pool, matches):
                rejects.write(run.reject_line(reject))
            start += count
            advance(1)


def _copy_filtered(job: CurateJob, shards: Sequence[Shard], rejects: IO[bytes]) -> None:
    for shard in shards:
        with open(job.work / "filter" / f"{shard.number:06d}.rejects.jsonl", "rb") as lines:
            while piece := lines.read(1 << 20):
                rejects.write(piece)


def _rest_of(
    job: CurateJob,
    shard: Shard,
    start: int,
    duplicates: dedup.Duplicates,
    named: dict[int, str],
    tally: _Tally,
    pool: _Pool,
    matches: IO[bytes],
) -> Iterator[dict[str, Any]]:
    """Give a shard's records to the pool, and yield those that are duplicates or from a benchmark as rejects.

    `named` gets the place of each record that has duplicates, for those to name it.
    """
    findings = run.shard_findings(job, shard)
    common = job.config.decontaminate.common if job.config.decontaminate else "keep"
    for place, line in enumerate(run.kept_lines(job, shard)):
        record = parse_line(line)
        number = start + place
        original = int(duplicates.original[number])
        if original != number:
            step = NEAR if duplicates.near[number] else EXACT
            tally.drop(shard.source, step, step)
            yield run.rejected(record, step, step, of=named[original])
            continue
        if number in named:
            named[number] = record.source
        found = [Finding(**each) for each in findings.get(place, ())]
        kind = verdict(found)
        tally.findings(shard.source, found)
        drop = kind == "leak" or (kind == "common" and common == "drop")
        if kind:
            match = {"source": record.source, "class": kind, "dropped": drop, "findings": list(map(asdict, found))}
            matches.write(run.reject_line(match))
        if kind and drop:
            tally.drop(shard.source, CONTAMINATION, kind)
            yield run.rejected(record, CONTAMINATION, kind)
            continue
        tally.keep(shard.source, record.meta)
        pool.add(line, record, shard.source)


class _Tally:
    """Counts, by step, source and benchmark."""

    def __init__(self, job: CurateJob, shards: Sequence[Shard]) -> None:
        self.config = job.config
        self.read: Counter[int] = Counter()
        self.kept: Counter[int] = Counter()
        self.dropped: Counter[tuple[int, str, str]] = Counter()
        self.licenses: dict[int, Counter[str]] = {}
        self.languages: dict[int, Counter[str]] = {}
        self.matches: Counter[tuple[str, str, str, int]] = Counter()
        self.unreadable: list[str] = []
        for shard in shards:
            counts = run.shard_counts(job, shard)
            self.read[shard.source] += counts["read"]
            for step, reason, count in counts["dropped"]:
                self.dropped[shard.source, step, reason] += count
                if reason == "unreadable file":
                    self.unreadable.append(shard.path)

    def drop(self, source: int, step: str, reason: str) -> None:
        """Count a record that is left out."""
        self.dropped[source, step, reason] += 1

    def keep(self, source: int, meta: dict[str, Any]) -> None:
        """Count a record that stays."""
        self.kept[source] += 1
        _count(self.licenses.setdefault(source, Counter()), meta.get("license"))
        _count(self.languages.setdefault(source, Counter()), meta.get("language"))

    def findings(self, source: int, found: Sequence[Finding]) -> None:
        """Count a record once for each benchmark that it matches, in its worse class, and there for each method."""
        for benchmark in {each.benchmark for each in found}:
            own = [each for each in found if each.benchmark == benchmark]
            kind = verdict(own) or ""
            for method in {"any", *(way for each in own if each.kind == kind for way in each.methods)}:
                self.matches[benchmark, kind, method, source] += 1

    def statistics(self) -> dict[str, Any]:
        """Return all counts."""
        names = [
            READ,
            *(step.name for step in build_steps(self.config.steps, self.config.kind)),
            EXACT,
            NEAR,
            CONTAMINATION,
            *([MIX] if self.config.mix.applies else []),
        ]
        left, steps = sum(self.read.values()), []
        for name in dict.fromkeys(names):
            reasons: Counter[str] = Counter()
            for (_, step, reason), count in self.dropped.items():
                if step == name:
                    reasons[reason] += count
            steps.append(
                {"step": name, "in": left, "dropped": sum(reasons.values()), "reasons": dict(sorted(reasons.items()))}
            )
            left -= sum(reasons.values())
        return {
            "read": sum(self.read.values()),
            "kept": sum(self.kept.values()),
            "unreadable_files": self.unreadable,
            "steps": steps,
            "sources": {source.label: self._source(number) for number, source in enumerate(self.config.sources)},
            "contamination": self._contamination(),
        }

    def _source(self, number: int) -> dict[str, Any]:
        dropped: Counter[str] = Counter()
        for (source, step, _), count in self.dropped.items():
            if source == number:
                dropped[step] += count
        return {
            "read": self.read[number],
            "kept": self.kept[number],
            "dropped": dict(sorted(dropped.items())),
            "licenses": dict(sorted(self.licenses.get(number, {}).items())),
            "languages": dict(sorted(self.languages.get(number, {}).items())),
        }

    def _contamination(self) -> dict[str, Any]:
        """Return records by benchmark, class and method, and by source."""
        if self.config.decontaminate is None:
            return {}
        found: dict[str, Any] = {
            name: {
                "compared": by,
                **{kind: {"records": 0, "methods": {}, "sources": {}} for kind in ("leak", "common")},
            }
            for name, by in coverage(self.config.decontaminate).items()
        }
        for (benchmark, kind, method, source), count in sorted(self.matches.items()):
            entry = found[benchmark][kind]
            if method == "any":
                entry["records"] += count
                label = self.config.sources[source].label
                entry["sources"][label] = entry["sources"].get(label, 0) + count
            else:
                entry["methods"][method] = entry["methods"].get(method, 0) + count
        return found


def _count(counter: Counter[str], value: Any) -> None:
    """Count what a record states; records may state anything, so only so many different things are told apart."""
    stated = " ".join(str(value or "not stated").split())[:60]
    counter[stated if stated in counter or len(counter) < MOST_STATED else "others"] += 1


class _Pool:
    """The records to write: straight to the output, or to a file from which the mix is drawn."""

    def __init__(self, job: CurateJob) -> None:
        self.job, self.count = job, 0
        self.path = job.work / "pool.jsonl"
        self.count_tokens = token_counter(job.config.mix)
        self.table = array("q")
        """Of each record its place in the file, tokens and source, where a mix will choose."""
        self.at = 0
        self.written = {number: [0, 0] for number in range(len(job.config.sources))}
        """Records and tokens of each source in the output."""

    def __enter__(self) -> _Pool:
        self.file = self.path.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, line: bytes, record: Any, source: int) -> None:
        """Take a record."""
        self.file.write(line)
        self.count += 1
        tokens = self.count_tokens(record)
        if self.job.config.mix.applies:
            self.table.extend((self.at, tokens, source))
        else:
            self._count(tokens, source)
        self.at += len(line)

    def _count(self, tokens: int, source: int) -> None:
        self.written[source][0] += 1
        self.written[source][1] += tokens

    def write(self, tally: _Tally) -> dict[str, Any]:
        """Write the output, and what the mix has no place for to the rejects; return records and tokens by source."""
        mix, sources, out = self.job.config.mix, self.job.config.sources, self.job.out / KEPT[self.job.config.kind]
        if mix.applies:
            table = np.frombuffer(self.table, np.int64).reshape(-1, 3)
            weights = [source.weight for source in sources]
            chosen = choose(table[:, 1], table[:, 2].astype(np.int16), weights, mix, self.job.seed)
            unused = np.ones(len(table), bool)
            unused[chosen] = False
            with (
                self.path.open("rb") as pool,
                out.open("wb") as kept,
                (self.job.out / REJECTS).open("ab") as rejects,
            ):
                for number in chosen:
                    place, tokens, source = table[number].tolist()
                    pool.seek(place)
                    kept.write(pool.readline())
                    self._count(tokens, source)
                for number in np.flatnonzero(unused):
                    pool.seek(int(table[number, 0]))
                    rejects.write(run.reject_line(run.rejected(parse_line(pool.readline()), MIX, NO_PLACE)))
                    tally.drop(int(table[number, 2]), MIX, NO_PLACE)
        else:
            self.path.replace(out)
        records, tokens = zip(*self.written.values(), strict=True)
        return {
            "records": sum(records),
            "tokens": sum(tokens),
            "tokens_counted_by": mix.tokenizer or "four characters a token",
            "sources": {
                source.label: {"records": self.written[number][0], "tokens": self.written[number][1]}
                for number, source in enumerate(sources)
            },
        }
