"""Stages whose weights were deleted, stages that a target needs, and hashes known before anything is made."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from xft.errors import BusyError, RunError
from xft.graph import Node, ancestors, bring_up_to_date, fingerprints, run_folder, run_to_add_to, stage_of, to_make
from xft.stage import BEGUN, Meter, Stage, aside_of, drop_files, read_manifest, write_json


class Toy:
    """base ─► tune ─► score, and base ─► other; each writes what it read."""

    def __init__(self, out: Path) -> None:
        self.out, self.made = out, Counter[str]()

    def nodes(self, **configs: int) -> list[Node]:
        after = {"base": (), "tune": ("base",), "other": ("base",), "score": ("tune",)}
        return [
            Node(name=name, config={"n": configs.get(name, 0)}, after=before, outside={}, work=self.work(name, before))
            for name, before in after.items()
        ]

    def work(self, name: str, before: tuple[str, ...]) -> Any:
        def do(folder: Path, _meter: Meter) -> None:
            read = "".join((self.out / each / "model.bin").read_text() for each in before)
            (folder / "model.bin").write_text(f"{read}{name}")
            (folder / "summary.json").write_text("{}")
            self.made[name] += 1

        return do

    def __call__(self, nodes: list[Node]) -> Counter[str]:
        self.made.clear()
        recipe = SimpleNamespace(seed=1, model_dump=lambda mode: {})
        bring_up_to_date(nodes, self.out, recipe, redo=False, confirm=lambda _: False, say=lambda _: None)
        return self.made


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    toy = Toy(tmp_path)
    assert toy(toy.nodes()) == dict.fromkeys(("base", "tune", "other", "score"), 1)
    return toy


def test_a_stage_without_its_weights_is_done_while_nothing_reads_them(toy: Toy) -> None:
    drop_files(toy.out / "tune", "model*")
    assert [path.name for path in sorted((toy.out / "tune").iterdir())] == ["manifest.json", "summary.json"]
    assert (read_manifest(toy.out / "tune") or {})["dropped"] == ["model.bin"]
    assert toy(toy.nodes()) == {}
    assert toy(toy.nodes(other=1)) == {"other": 1}


def test_it_is_made_again_with_what_it_reads_once_something_does(toy: Toy) -> None:
    for name in ("base", "tune", "other"):
        drop_files(toy.out / name, "model*")
    assert toy(toy.nodes(score=1)) == {"base": 1, "tune": 1, "score": 1}
    assert (toy.out / "score" / "model.bin").read_text() == "basetunescore"
    assert "dropped" not in (read_manifest(toy.out / "tune") or {})
    assert toy(toy.nodes(score=1)) == {}
    assert toy(toy.nodes()) == {}  # the old score was put aside and comes back


def test_one_that_was_put_aside_without_its_weights_is_made_again_when_it_is_read(toy: Toy) -> None:
    drop_files(toy.out / "tune", "model*")
    assert toy(toy.nodes(tune=1)) == {"tune": 1}  # the same content, so the score stands
    assert toy(toy.nodes(tune=0, score=1)) == {"tune": 1, "score": 1}
    assert (toy.out / "tune" / "model.bin").is_file()


def test_a_lost_file_still_counts_as_unfinished(toy: Toy) -> None:
    (toy.out / "tune" / "model.bin").unlink()
    assert read_manifest(toy.out / "tune") is None
    drop_files(toy.out / "tune", "model*")
    assert read_manifest(toy.out / "tune") is None


def test_links_to_outside_are_not_deleted(toy: Toy, tmp_path: Path) -> None:
    link = toy.out / "base" / "model.lnk"
    link.symlink_to(toy.out / "other" / "model.bin")
    drop_files(toy.out / "base", "model.lnk")
    assert link.is_symlink()


def test_a_targets_ancestors_come_in_order_and_nothing_else(toy: Toy) -> None:
    assert [node.name for node in ancestors(toy.nodes(), "score")] == ["base", "tune", "score"]
    assert [node.name for node in ancestors(toy.nodes(), "base")] == ["base"]


def test_fingerprints_differ_from_the_first_changed_stage_on(toy: Toy) -> None:
    before, after = fingerprints(toy.nodes(), 1), fingerprints(toy.nodes(tune=1), 1)
    assert {name for name in before if before[name] != after[name]} == {"tune", "score"}
    assert set(fingerprints(toy.nodes(), 2).values()).isdisjoint(before.values())


def test_several_may_add_to_a_run_and_one_alone_takes_away(toy: Toy) -> None:
    nodes = toy.nodes()
    with run_to_add_to(nodes, toy.out, 1), run_to_add_to(nodes, toy.out, 1):
        with pytest.raises(BusyError), run_folder(toy.out):
            pass
        with pytest.raises(BusyError), run_to_add_to(toy.nodes(other=1), toy.out, 1):
            pass  # the other `other` would be put aside
    drop_files(toy.out / "tune", "model*")
    with run_to_add_to(nodes, toy.out, 1), run_to_add_to(nodes, toy.out, 1):
        pass
    (toy.out / "score" / "summary.json").unlink()  # to be made again, from weights that must be made again
    with run_to_add_to(nodes, toy.out, 1), pytest.raises(BusyError), run_to_add_to(nodes, toy.out, 1):
        pass


def test_of_a_stage_that_is_held_elsewhere_nothing_is_lost(toy: Toy) -> None:
    def refuse(stage: Stage) -> AbstractContextManager[None]:
        if stage.name == "tune":
            raise BusyError("elsewhere")
        return nullcontext()

    drop_files(toy.out / "base", "model*")
    before = read_manifest(toy.out / "tune") or {}
    recipe = SimpleNamespace(seed=1, model_dump=lambda mode: {})
    with pytest.raises(BusyError, match="elsewhere"):
        bring_up_to_date(
            toy.nodes(tune=1), toy.out, recipe, redo=False, confirm=lambda _: False, say=lambda _: None, hold=refuse
        )
    assert read_manifest(aside_of(toy.out / "tune", before["key"])) == before
    assert "dropped" not in (read_manifest(toy.out / "base") or {})  # the work before it is done
    assert toy(toy.nodes(tune=1)) == {"tune": 1}  # the same content, so the score stands


def test_a_redo_that_breaks_off_leaves_no_score_of_other_settings(toy: Toy) -> None:
    def breaks(_folder: Path, _meter: Meter) -> None:
        raise RunError("broken off")

    nodes = toy.nodes(base=1)
    nodes[0] = replace(nodes[0], work=breaks)
    with pytest.raises(RunError, match="broken off"):
        toy(nodes)
    assert [name for name in ("base", "tune", "other", "score") if (toy.out / name).exists()] == []
    assert toy(toy.nodes()) == {}  # all that was put aside comes back
    assert not list(toy.out.glob("recipe.yaml.*"))


def test_a_finished_stage_says_which_file_it_has_lost(toy: Toy) -> None:
    (toy.out / "tune" / "summary.json").unlink()
    with pytest.raises(RunError, match=r"tune: summary\.json is missing; put it back, or move the folder away"):
        toy(toy.nodes())


def test_links_that_lead_nowhere_are_made_again_in_place(tmp_path: Path) -> None:
    toy, place = Toy(tmp_path / "run"), tmp_path / "here"
    toy.out.mkdir()
    place.mkdir()
    (place / "model.bin").write_text("base")

    def nodes(where: Path, **configs: int) -> list[Node]:
        def link(folder: Path, _meter: Meter) -> None:
            (folder / "model.bin").unlink(missing_ok=True)
            (folder / "model.bin").symlink_to(where / "model.bin")

        base, *others = toy.nodes(**configs)
        return [replace(base, work=link, links=True), *others]

    toy(nodes(place))
    place.rename(tmp_path / "there")
    assert toy(nodes(tmp_path / "there")) == {}
    assert (toy.out / "base" / "model.bin").read_text() == "base"
    toy(nodes(tmp_path / "there", base=1))
    (tmp_path / "there").rename(place)
    assert toy(nodes(place)) == {}  # both are broken, and the one that was put aside is brought back
    assert (toy.out / "base" / "model.bin").read_text() == "base"


def test_what_must_be_made_is_told_with_what_is_there_of_it(toy: Toy) -> None:
    assert to_make(toy.nodes(), toy.out, 1) == {}
    drop_files(toy.out / "base", "model*")
    nodes = toy.nodes(tune=1)
    partial = toy.out / "tune.partial"
    (partial / "resume").mkdir(parents=True)
    write_json(partial / BEGUN, {"key": stage_of(nodes[1], toy.out, 1).key})
    (partial / "resume" / "state").write_bytes(bytes(1000))
    there = 1000 + (partial / BEGUN).stat().st_size
    assert to_make(nodes, toy.out, 1) == {"base": 0, "tune": there, "score": 0}
    write_json(partial / BEGUN, {"key": "of other settings"})
    assert to_make(nodes, toy.out, 1) == {"base": 0, "tune": 0, "score": 0}
