"""A data recipe: seeds to pairs to a curated, mixed data set, in one run directory."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripted_teacher import Script, good

from xft import dataset
from xft.dataset import DatasetRecipe
from xft.errors import DataError, FetchError, MissingExtraError, RecipeError, RunError
from xft.recipe import load_any

Run = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the curation run in this process: to start others takes longer than all the work."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    for name in "abcd":
        (seeds / f"{name}.py").write_text("".join(f"{name}_{line} = {line}\n" for line in range(40)))
    ours = [
        {"instruction": "Name the largest planet.", "response": "Jupiter is the largest planet of the solar system."},
        {"instruction": "Name the largest planet!", "response": "Jupiter is the largest planet of the solar system."},
        {"instruction": "Say something.", "response": ""},
    ]
    (tmp_path / "ours.jsonl").write_text("".join(json.dumps(each) + "\n" for each in ours))
    tree = {
        "name": "mine", "seeds": [{"path": str(seeds), "license": "MIT"}], "teacher": "http://127.0.0.1:9/v1",
        "synth": {"pairs": 5, "check": {"languages": "off"}},
        "sources": [{"path": str(tmp_path / "ours.jsonl"), "name": "ours", "license": "CC0-1.0"}],
        "curate": {"decontaminate": {"functional": False}, "mix": {"shuffle": True}},
    }  # fmt: skip
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def run(recipe: Path, out: Path, *overrides: str, redo: bool = False) -> list[str]:
    """Run and return what was said."""
    said: list[str] = []
    plan = load_any(recipe, list(overrides))
    assert isinstance(plan, DatasetRecipe)
    assert dataset.run(plan, out, redo=redo, confirm=lambda _: False, say=said.append) == out / "curate"
    return said


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_seeds_become_one_mixed_set_with_its_card(serve: Any, recipe: Path, tmp_path: Path) -> None:
    out, teacher = tmp_path / "out", f"teacher={serve(Script(good))}"
    run(recipe, out, teacher)
    made, kept = lines(out / "synth" / "pairs.jsonl"), lines(out / "curate" / "train.jsonl")
    assert len(made) == 5
    planets = [each for each in kept if "planet" in each["instruction"]]
    assert len(planets) == 1
    assert sorted(each["instruction"] for each in kept) == sorted(each["instruction"] for each in [*made, *planets])
    card = (out / "curate" / "README.md").read_text()
    assert all(word in card for word in ("synth", "ours", "MIT", "CC0-1.0"))
    rejected = {each["reason"] for each in lines(out / "curate" / "rejects.jsonl")}
    assert "response is empty" in rejected
    assert yaml.safe_load((out / "recipe.yaml").read_text())["synth"]["pairs"] == 5

    assert [line for line in run(recipe, out, teacher) if "done before" not in line] == []
    said = run(recipe, out, teacher, "curate.dedup.near=false")
    assert any("synth: done before" in line for line in said)
    assert any("will redo curate" in line for line in said)


def test_what_the_sandbox_has_run_is_curated_and_carded(serve: Any, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(recipe, out, f"teacher={serve(Script(good))}", "synth.check.languages=[python]")
    kept = [each for each in lines(out / "curate" / "train.jsonl") if "planet" not in each["instruction"]]
    assert len(kept) == 5
    for each in kept:
        assert each["meta"]["check"]["status"] == "passed" and each["meta"]["check"]["killed"] > 0
        assert len(each["meta"]["tests"]) >= 3


def test_a_tokenizer_that_is_not_there_is_missed_at_once_and_another_one_counts_anew(
    serve: Any, recipe: Path, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    out, teacher, path = tmp_path / "out", f"teacher={serve(Script(good))}", tmp_path / "tokenizer.json"
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        run(recipe, out, teacher, f"curate.mix.tokenizer={path}")
    assert not out.exists()
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    run(recipe, out, teacher, f"curate.mix.tokenizer={path}")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path))
    said = run(recipe, out, teacher, f"curate.mix.tokenizer={path}")
    assert any("will redo curate" in line for line in said)


def test_a_teacher_that_goes_away_costs_nothing(serve: Any, recipe: Path, tmp_path: Path) -> None:
    run(recipe, tmp_path / "whole", f"teacher={serve(Script(good))}")
    (tmp_path / "cache").rename(tmp_path / "cache-of-the-first")
    first, second = Script(good, die_after=2), Script(good)
    with pytest.raises(FetchError):
        run(recipe, tmp_path / "out", f"teacher={serve(first)}")
    run(recipe, tmp_path / "out", f"teacher={serve(second)}")
    assert len(first.answered) >= 2
    assert not set(first.answered) & set(second.answered)
    for name in ("synth/pairs.jsonl", "curate/train.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    moved = (tmp_path / "whole").rename(tmp_path / "elsewhere")
    assert not [line for line in run(recipe, moved, f"teacher={serve(Script(good))}") if "done before" not in line]


def test_a_library_that_the_curation_lacks_is_missed_before_the_teacher_is_asked(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'xft\[data\]'"):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_is_said_before_the_work(serve: Any, recipe: Path, tmp_path: Path) -> None:
    out, teacher = tmp_path / "out", f"teacher={serve(Script(good))}"
    with pytest.raises(
        RecipeError, match=r"synth: unknown key 'pear'; known keys: method, pairs.*did you mean 'pairs'"
    ):
        run(recipe, out, teacher, "synth.pear=3")
    with pytest.raises(RecipeError, match=r"curate: unknown key 'sources'"):
        run(recipe, out, teacher, "curate.sources=[x]")
    with pytest.raises(Exception, match=r"unknown .*'no-such-step'"):
        run(recipe, out, teacher, "curate.steps=[no-such-step]")
    with pytest.raises(RecipeError, match="two sources are called 'synth'"):
        run(recipe, out, teacher, "sources=[{path: shipped:python, name: synth}]")
    assert not out.exists()
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="holds something else than a run"):
        run(recipe, out, teacher)
