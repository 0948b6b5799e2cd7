"""The stage `data`: read the sources, set responses aside for the held-out loss, write both parts as JSONL."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from xft.data.example import Example
from xft.data.sources import Rejected, file_names, made_by, read_source, resolve_files, source_name
from xft.errors import DataError
from xft.recipe import DataConfig
from xft.stage import file_digest, write_json

TRAIN, HELDOUT, REJECTS = "train.jsonl", "heldout.jsonl", "rejects.jsonl"


def prepare(config: DataConfig, out: Path, seed: int) -> None:
    """Write train.jsonl, heldout.jsonl, summary.json and, if there were any, rejects.jsonl into `out`.

    Raises:
        DataError: a malformed record (unless `skip_bad`), or too few records.
    """
    read, rejected = read_all(config)
    if rejected:
        _write_lines(out / REJECTS, (asdict(reject) for reject in rejected))
    examples = short_enough(read, config.max_chars)
    train, heldout = split(examples, config, seed)
    write_examples(out / TRAIN, train)
    write_examples(out / HELDOUT, heldout)
    names = file_names(config.sources)
    records = Counter(_file_of(example.source) for example in read)
    files = {source.path: (source_name(source), resolve_files(source)) for source in config.sources}
    counts = [
        {"path": name, "records": sum(records[names[path]] for path in paths), **_curation(paths)}
        for name, paths in files.values()
    ]
    write_json(
        out / "summary.json",
        {
            "train": len(train), "heldout": len(heldout), "rejected": len(rejected),
            "too_long": len(read) - len(examples), "sources": counts,
        },
    )  # fmt: skip


def _curation(paths: Sequence[Path]) -> dict[str, Any]:
    """Return what `xft curate` says of its steps, where a source is what it has made."""
    (path, *others) = paths
    if others or path.name != TRAIN or made_by(path.parent).get("stage") != "curate":
        return {}
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):  # the report can do without
        steps = json.loads(path.with_name("statistics.json").read_bytes())["steps"]
        kept = [
            {**{key: step[key] for key in ("step", "in", "dropped")}, "reasons": dict(step["reasons"])}
            for step in steps
        ]
        return {"curated": kept}
    return {}


def write_pairs(config: DataConfig, out: Path) -> Path:
    """Write all pairs into `out`/train.jsonl, and malformed records into rejects.jsonl; return the pairs' file.

    Raises:
        DataError: a malformed record (unless `skip_bad`), or no record at all.
    """
    examples, rejected = read_all(config)
    if rejected:
        _write_lines(out / REJECTS, (asdict(reject) for reject in rejected))
        print(
            f"{len(rejected)} malformed record{'s' * (len(rejected) > 1)} left out, listed in {REJECTS}",
            file=sys.stderr,
        )
    write_examples(out / TRAIN, short_enough(examples, config.max_chars))
    return out / TRAIN


def read_all(config: DataConfig) -> tuple[list[Example], list[Rejected]]:
    """Read every source; what is read names its file as `file_names` does, an error as the recipe does.

    Raises:
        DataError: a malformed record (unless `skip_bad`), or no record at all.
    """
    examples: list[Example] = []
    rejected: list[Rejected] = []
    for source in config.sources:
        for item in read_source(source):
            if isinstance(item, Example):
                examples.append(item)
            else:
                rejected.append(item)
    if rejected and not config.skip_bad:
        first = rejected[0]
        more = f" (and {len(rejected) - 1} more)" if len(rejected) > 1 else ""
        raise DataError(
            f"{first.where}: {first.reason}{more}; mend it, or use --skip-bad (data.skip_bad=true for a run) "
            "to leave such records out"
        )
    if not examples:
        given = ", ".join(source.path for source in config.sources)
        reason = ""
        if rejected:
            reason = f"; all {len(rejected)} records are bad, the first is {rejected[0].where}: {rejected[0].reason}"
        raise DataError(f"{given}: no instruction pairs in it{reason}")
    names = {str(path): name for path, name in file_names(config.sources).items()}
    return (
        [replace(example, source=_renamed(example.source, names)) for example in examples],
        [replace(reject, where=_renamed(reject.where, names)) for reject in rejected],
    )


def short_enough(examples: list[Example], max_chars: int | None) -> list[Example]:
    """Return the pairs of at most so many characters.

    Raises:
        DataError: none is.
    """
    if max_chars is None:
        return examples
    kept = [example for example in examples if len(example.instruction) + len(example.response) <= max_chars]
    if not kept:
        raise DataError(f"none of {len(examples)} pairs has at most {max_chars} characters; raise data.max_chars")
    return kept


def split(examples: list[Example], config: DataConfig, seed: int) -> tuple[list[Example], list[Example]]:
    """Return training and held-out pairs, chosen by the seed; equal instructions fall on the same side.

    Raises:
        DataError: too few pairs.
    """
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    heldout_texts = {examples[index].instruction for index in order[: config.heldout]}
    heldout = [examples[index] for index in order if examples[index].instruction in heldout_texts]
    train = [examples[index] for index in order if examples[index].instruction not in heldout_texts]
    wanted = config.train or 1
    if len(train) < wanted:
        raise DataError(
            f"{len(examples)} instruction pairs: too few for {config.heldout} held out and {wanted} to train on; "
            "add data, or lower data.heldout or data.train"
        )
    return train[: config.train], heldout


def sources_digest(config: DataConfig) -> dict[str, str]:
    """Return the sha256 of every file that the sources name; the same files elsewhere have the same."""
    return {name: file_digest(path) for path, name in file_names(config.sources).items()}


def read_pairs(path: Path) -> Iterator[Example]:
    """Read a file that `prepare` wrote."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield Example(**json.loads(line))


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write pairs one a line, in the form that `read_pairs` reads."""
    _write_lines(path, (asdict(example) for example in examples))


def _file_of(where: str) -> str:
    """Return the file in a record's place, `FILE:LINE` or `FILE[ROW]`."""
    return where[: -1 - len(where.rsplit(":" if where[-1] != "]" else "[", 1)[1])]


def _renamed(where: str, names: Mapping[str, str]) -> str:
    file = _file_of(where)
    return names[file] + where[len(file) :]


def _write_lines(path: Path, records: Iterable[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as sink:
        for record in records:
            sink.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
