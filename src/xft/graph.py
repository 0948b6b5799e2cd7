"""Stages that depend on one another, in one run directory: each done once, interrupted and resumed at will."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from xft.errors import RunError
from xft.progress import clock
from xft.stage import Meter, Stage, aside_of, locked, read_manifest, run_stage, set_aside

ASK_SECONDS = 600.0
RECIPE = "recipe.yaml"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A stage in the graph: what it depends on and what it does."""

    name: str
    config: dict[str, Any]
    after: tuple[str, ...]
    """Stages whose content it reads."""
    work: Callable[[Path, Meter], None]
    outside: dict[str, str]
    """Digests of inputs from outside the run."""


@contextmanager
def run_folder(out: Path) -> Iterator[None]:
    """Hold a run directory, made if need be.

    Raises:
        RunError: another process is at it, or it holds something else.
    """
    if out.exists() and any(out.iterdir()) and not (out / RECIPE).exists() and not (out / ".lock").exists():
        raise RunError(f"{out}: holds something else than a run; give another folder with --out")
    with locked(out / ".lock"):
        yield


def bring_up_to_date(
    nodes: Sequence[Node],
    out: Path,
    recipe: Any,
    *,
    redo: bool,
    confirm: Callable[[str], bool],
    say: Callable[[str], None],
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Do what is not done yet, in the nodes' order, and write the resolved recipe beside it.

    `prepare` may refuse after the user's word and before anything is written; the recipe has a `seed`.

    Raises:
        RunError: redoing needs the user's word.
    """
    _ask_before_redoing(nodes, out, recipe.seed, redo, confirm, say)
    prepare()
    (out / RECIPE).write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    for number, node in enumerate(nodes, start=1):
        stage = stage_of(node, out, recipe.seed)
        folder = out / node.name
        manifest = _current(folder, stage)
        if manifest is None:
            say(f"[{number}/{len(nodes)}] {node.name}")
            manifest = run_stage(folder, stage)
            say(f"[{number}/{len(nodes)}] {node.name}: {clock(manifest['wall_seconds'])}")
        else:
            say(f"[{number}/{len(nodes)}] {node.name}: done before")


def stage_of(node: Node, out: Path, seed: int) -> Stage:
    """Return a node's stage; its inputs must be finished."""
    inputs = {}
    for name in node.after:
        manifest = read_manifest(out / name)
        if manifest is None:
            raise RunError(f"{out / name}: not finished, though {node.name} needs it; run again")
        inputs[name] = manifest["digest"]
    return Stage(name=node.name, config=node.config, inputs=inputs | node.outside, work=node.work, seed=seed)


def _current(folder: Path, stage: Stage) -> dict[str, Any] | None:
    """Return the manifest of a folder that is up to date; put another one aside, or bring a fitting one back."""
    manifest = read_manifest(folder)
    if manifest and manifest["key"] == stage.key:
        return manifest
    if manifest:
        set_aside(folder, manifest["key"])
    earlier = aside_of(folder, stage.key)
    kept = read_manifest(earlier)
    if kept and kept["key"] == stage.key and not folder.exists():
        earlier.rename(folder)
        return kept
    return None


def _ask_before_redoing(
    nodes: Sequence[Node], out: Path, seed: int, redo: bool, confirm: Callable[[str], bool], say: Callable[[str], None]
) -> None:
    """List finished stages that no longer fit, with what they took; ask when that is more than ten minutes."""
    stale: dict[str, float] = {}
    digests: dict[str, str] = {}
    """Of the content that each stage has or, put aside earlier, will have again without work."""
    for node in nodes:
        present = read_manifest(out / node.name)
        if all(name in digests for name in node.after):
            inputs = {name: digests[name] for name in node.after} | node.outside
            key = Stage(name=node.name, config=node.config, inputs=inputs, work=node.work, seed=seed).key
            found = (present, read_manifest(aside_of(out / node.name, key)))
            if fitting := next((manifest for manifest in found if manifest and manifest["key"] == key), None):
                digests[node.name] = fitting["digest"]
                continue
        if present:
            stale[node.name] = float(present["wall_seconds"])
    if not stale:
        return
    total = sum(stale.values())
    listed = ", ".join(f"{name} ({clock(seconds)})" for name, seconds in stale.items())
    say(f"changed inputs: will redo {listed}; the old results stay in NAME.HASH folders")
    if total > ASK_SECONDS and not redo and not confirm(f"redo {clock(total)} of work?"):
        raise RunError(
            f"{out}: {clock(total)} of work would be redone ({listed}); say so with --redo, or give another --out"
        )
