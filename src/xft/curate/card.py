"""The data card: the README of a curated set, from its statistics."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from xft import __version__
from xft.stage import file_digest

if TYPE_CHECKING:
    from xft.curate.run import CurateJob

MOST = 12
"""Reasons, licences or languages that a cell names."""
ESCAPES = str.maketrans({mark: f"&#{ord(mark)};" for mark in "<>&|"} | {mark: f"\\{mark}" for mark in "\\`*_[]#!~"})
"""What Markdown or HTML would read as more than text."""


def data_card(job: CurateJob, statistics: Mapping[str, Any]) -> str:
    """Return the card as Markdown: sources, licences, counts, drops by reason, benchmarks, hashes, settings."""
    from xft.curate.run import KEPT, MATCHES, REJECTS

    written = statistics["written"]
    name = KEPT[job.config.kind]
    lines = [
        "# Data card",
        "",
        f"{written['records']:,} records, {written['tokens']:,} tokens ({cell(written['tokens_counted_by'])}), made by "
        f"`xft curate` {__version__} with seed {job.seed}. {statistics['read']:,} records were read, "
        f"{statistics['kept']:,} passed every step. `{REJECTS}` has each of the others with its reason, "
        f"{'and those that the mix had no place for; ' if job.config.mix.applies else ''}`statistics.json` the counts.",
        "",
        "## Sources",
        "",
        *table(
            ("source", "read", "passed", "written", "tokens", "licences of what passed", "languages"),
            (
                (
                    label,
                    source["read"],
                    source["kept"],
                    written["sources"][label]["records"],
                    written["sources"][label]["tokens"],
                    counts(source["licenses"]),
                    counts(source["languages"]),
                )
                for label, source in statistics["sources"].items()
            ),
        ),
        "",
        "## What was left out",
        "",
        *table(
            ("step", "looked at", "dropped", "reasons"),
            ((step["step"], step["in"], step["dropped"], counts(step["reasons"])) for step in statistics["steps"]),
        ),
        "",
        "## Benchmarks",
        "",
        *_benchmarks(job, statistics),
        "",
        "## Files",
        "",
        *table(("file", "sha256"), ((each, file_digest(job.out / each)) for each in (name, REJECTS, MATCHES))),
        "",
        "## Settings",
        "",
        "```json",
        json.dumps(job.config.model_dump(exclude_defaults=True), indent=2).replace("`", "\\u0060"),
        "```",
        "",
    ]
    return "\n".join(lines)


def _benchmarks(job: CurateJob, statistics: Mapping[str, Any]) -> list[str]:
    if job.config.decontaminate is None:
        return ["Not compared with benchmarks."]
    rows = [
        (name, found["compared"], kind, entry["records"], counts(entry["methods"]), counts(entry["sources"]))
        for name, found in statistics["contamination"].items()
        for kind, entry in {"leak": found["leak"], "common": found["common"]}.items()
        if entry["records"] or kind == "leak"
    ]
    what = {"keep": "kept", "drop": "dropped"}[job.config.decontaminate.common]
    return [
        "A leak has a problem's statement, or its statement and solution, and was dropped; a common record has a "
        f"solution under another statement, and was {what}. `contamination.jsonl` lists every match.",
        "",
        *table(("benchmark", "compared by", "class", "records", "found by", "sources"), rows),
    ]


def counts(found: Mapping[str, int]) -> str:
    """Return the largest counts of a mapping in one cell."""
    most = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    more = f"; {len(most) - MOST} more" if len(most) > MOST else ""
    return "; ".join(f"{name} {count:,}" for name, count in most[:MOST]) + more


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """Return a Markdown table."""
    titles = list(head)
    body = [
        f"| {' | '.join(cell(f'{value:,}' if isinstance(value, int) else value) for value in row)} |" for row in rows
    ]
    return [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}", *body]


def cell(text: Any) -> str:
    """Return text that stays in its cell, and is nothing but text there, whoever wrote it."""
    return (" ".join(str(text).split()) or "-").translate(ESCAPES)
