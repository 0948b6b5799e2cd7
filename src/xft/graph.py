"""Stages that depend on one another, in one run directory: each done once, interrupted and resumed at will."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from xft.errors import RunError
from xft.progress import clock
from xft.stage import (
    BEGUN,
    MANIFEST,
    Meter,
    Stage,
    aside_of,
    locked,
    read_json,
    read_manifest,
    run_stage,
    set_aside,
)

Make = Callable[[Path, Stage], dict[str, Any]]
"""Makes a folder and returns its manifest, as `run_stage` does."""

Hold = Callable[[Stage], AbstractContextManager[None]]
"""Keeps others from a stage while it is made."""

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
    links: bool = False
    """Its work only makes links to outside; it is done again in place where one leads nowhere."""


@contextmanager
def run_folder(out: Path, sign: str = RECIPE, *, shared: bool = False, wait: float = 0.0) -> Iterator[None]:
    """Hold a run directory, made if need be; `sign` is the file that tells it from other folders.

    `shared` and `wait` are those of `locked`.

    Raises:
        BusyError: another process is at it.
        RunError: it holds something else.
    """
    if out.exists() and any(out.iterdir()) and not (out / sign).exists() and not (out / ".lock").exists():
        raise RunError(f"{out}: holds something else than a run; give another folder with --out")
    with locked(out / ".lock", shared=shared, wait=wait):
        yield


@contextmanager
def run_to_add_to(nodes: Sequence[Node], out: Path, seed: int) -> Iterator[None]:
    """Hold a run directory together with others that add to it; alone where something in it must go first.

    Raises:
        BusyError: another process is at it, and one of the two must be alone.
    """
    with run_folder(out, shared=True):
        present = _present(nodes, out)
        fitting = _fitting(nodes, out, seed)
        stays = all(fitting.get(name, {}).get("key") == manifest["key"] for name, manifest in present.items())
        if stays and not _wanted_again(nodes, fitting):
            yield
            return
    with run_folder(out):
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
    make: Make = run_stage,
    hold: Hold = lambda _: nullcontext(),
) -> None:
    """Do what is not done yet, in the nodes' order, and write the resolved recipe beside it.

    `prepare` may refuse after the user's word and before anything is written; the recipe has a `seed`.

    Raises:
        RunError: redoing needs the user's word, or a finished stage has lost a file.
    """
    for node in nodes:
        if not node.links:
            _refuse_lost(out / node.name)
    stale, emptied = outdated(nodes, out, recipe.seed)
    ask_before_redoing(stale.values(), out, redo, confirm, say)
    prepare()
    for name, manifest in stale.items():  # all at once, so that no recipe stands beside scores of another
        if manifest["key"] != emptied.get(name, {}).get("key"):
            set_aside(out / name, manifest["key"])
    fresh = out / f"{RECIPE}.{os.getpid()}.new"
    fresh.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    fresh.replace(out / RECIPE)
    for number, node in enumerate(nodes, start=1):
        stage = stage_of(node, out, recipe.seed)
        folder, said = out / node.name, f"[{number}/{len(nodes)}] {node.name}"
        if node.name not in emptied and _is_made(folder, stage):
            say(f"{said}: done before")
            continue
        with hold(stage):
            if gone := emptied.get(node.name):
                shutil.rmtree(next(place for place, found in _places(out, gone["stage"], gone["key"]) if found))
            if _current(folder, stage, node.links):
                say(f"{said}: done before")
                continue
            say(said)
            manifest = make(folder, stage)
        say(f"{said}: {clock(manifest['wall_seconds'])}")


def outdated(
    nodes: Sequence[Node], out: Path, seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return the manifests of the finished stages that will be redone, and of those whose deleted files are needed."""
    present = _present(nodes, out)  # looked up first: what others add meanwhile is not what no longer fits
    fitting = _fitting(nodes, out, seed)
    emptied = {name: fitting.pop(name) for name in _wanted_again(nodes, fitting)}
    return {name: manifest for name, manifest in present.items() if name not in fitting}, emptied


def stage_of(node: Node, out: Path, seed: int) -> Stage:
    """Return a node's stage; its inputs must be finished."""
    manifests = {}
    for name in node.after:
        manifest = read_manifest(out / name)
        if manifest is None:
            raise RunError(f"{out / name}: not finished, though {node.name} needs it; run again")
        manifests[name] = manifest
    return _stage(node, manifests, seed)


def to_make(nodes: Sequence[Node], out: Path, seed: int) -> dict[str, int]:
    """Return the stages that are not there, each with the bytes that an interrupted try at it has left."""
    fitting = _fitting(nodes, out, seed)
    again = _wanted_again(nodes, fitting)
    left: dict[str, int] = {}
    for node in nodes:
        if node.name in again or node.name not in fitting:
            partial = out / f"{node.name}.partial"
            known = all(name in fitting for name in node.after)
            goes_on = known and read_json(partial / BEGUN, {}).get("key") == _stage(node, fitting, seed).key
            files = partial.rglob("*") if goes_on else ()
            left[node.name] = sum(path.lstat().st_size for path in files if path.is_file())
    return left


def _stage(node: Node, manifests: Mapping[str, Mapping[str, Any]], seed: int) -> Stage:
    inputs = {name: manifests[name]["digest"] for name in node.after} | node.outside
    return Stage(name=node.name, config=node.config, inputs=inputs, work=node.work, seed=seed)


def _told(folder: Path) -> dict[str, Any] | None:
    """Return a folder's manifest, whatever has become of its files."""
    manifest: dict[str, Any] | None = read_json(folder / MANIFEST, None)
    return manifest


def _refuse_lost(folder: Path) -> None:
    """Raise RunError where a finished stage's file is gone."""
    if read_manifest(folder) is None and (manifest := _told(folder)):
        kept = manifest["files"].keys() - manifest.get("dropped", [])
        lost = sorted(name for name in kept if not (folder / name).exists())
        raise RunError(
            f"{folder}: {', '.join(lost)} is missing; put it back, or move the folder away to have it made anew"
        )


def _is_made(folder: Path, stage: Stage) -> bool:
    """Return whether a folder is up to date."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest["key"] == stage.key


def _current(folder: Path, stage: Stage, links: bool) -> bool:
    """Return whether a folder is up to date; put another one aside, bring a fitting one back, mend its links."""
    if _is_made(folder, stage):
        return True
    read = _told if links else read_manifest
    if (manifest := read(folder)) and manifest["key"] != stage.key:
        set_aside(folder, manifest["key"])
    earlier = aside_of(folder, stage.key)
    if (manifest := read(earlier)) and manifest["key"] == stage.key and not folder.exists():
        earlier.rename(folder)
    if links and read(folder):
        stage.work(folder, Meter())
    return _is_made(folder, stage)


def _present(nodes: Sequence[Node], out: Path) -> dict[str, dict[str, Any]]:
    """Return the manifest of each finished stage, fitting or not."""
    return {node.name: manifest for node in nodes if (manifest := read_manifest(out / node.name))}


def _fitting(nodes: Sequence[Node], out: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Return the manifest of each stage whose content is there, or was put aside, and need not be made."""
    found: dict[str, dict[str, Any]] = {}
    for node in nodes:
        if all(name in found for name in node.after):
            key, read = _stage(node, found, seed).key, _told if node.links else read_manifest
            if fitting := next((manifest for _, manifest in _places(out, node.name, key, read) if manifest), None):
                found[node.name] = fitting
    return found


def _places(
    out: Path, name: str, key: str, read: Callable[[Path], dict[str, Any] | None] = read_manifest
) -> list[tuple[Path, dict[str, Any] | None]]:
    """Return the folders in which a stage may be, with the manifest of one that has the key."""
    places = (out / name, aside_of(out / name, key))
    manifests = [read(place) for place in places]
    return [
        (place, manifest if manifest and manifest["key"] == key else None)
        for place, manifest in zip(places, manifests, strict=True)
    ]


def _wanted_again(nodes: Sequence[Node], fitting: dict[str, dict[str, Any]]) -> list[str]:
    """Name the stages with deleted files which a stage that must be made will read."""
    again: list[str] = []
    for node in reversed(nodes):
        if node.name in again or node.name not in fitting:
            again += [name for name in node.after if fitting.get(name, {}).get("dropped") and name not in again]
    return again


def ask_before_redoing(
    stale: Iterable[Mapping[str, Any]],
    out: Path,
    redo: bool,
    confirm: Callable[[str], bool],
    say: Callable[[str], None],
) -> None:
    """List finished stages that no longer fit, by their manifests; ask when they took more than ten minutes.

    Raises:
        RunError: they did, and the user has not agreed.
    """
    took: dict[str, float] = {}
    for manifest in stale:
        took[manifest["stage"]] = took.get(manifest["stage"], 0.0) + float(manifest["wall_seconds"])
    if not took:
        return
    total = sum(took.values())
    listed = ", ".join(f"{name} ({clock(seconds)})" for name, seconds in took.items())
    say(f"changed inputs: will redo {listed}; the old results stay in NAME.HASH folders")
    if total > ASK_SECONDS and not redo and not confirm(f"redo {clock(total)} of work?"):
        raise RunError(
            f"{out}: {clock(total)} of work would be redone ({listed}); say so with --redo, or give another --out"
        )


def ancestors(nodes: Sequence[Node], name: str) -> list[Node]:
    """Return a stage and all that it depends on, in the nodes' order."""
    wanted = {name}
    for node in reversed(nodes):
        if node.name in wanted:
            wanted.update(node.after)
    return [node for node in nodes if node.name in wanted]


def fingerprints(nodes: Sequence[Node], seed: int) -> dict[str, str]:
    """Return a hash of all that each stage's content depends on, known before anything is made."""
    found: dict[str, str] = {}
    for node in nodes:
        tree = [node.name, node.config, node.outside, seed, [found[name] for name in node.after]]
        found[node.name] = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
    return found
