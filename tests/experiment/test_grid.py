"""The grid's schema and the plan: what is refused, and which run each cell is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from xft.errors import RecipeError
from xft.experiment.choice import Candidate, Choice, best, read_choices, write_choices
from xft.experiment.config import load_grid
from xft.experiment.plan import Plan

TREE: dict[str, Any] = {
    "name": "toy",
    "recipe": "tiny",
    "seeds": [1, 2],
    "set": {"eval": {"n": 2, "temperature": 0.8}},
    "methods": {
        "sft": {"row": "sft"},
        "xft": {"row": "xft"},
        "delta": {"row": "xft", "set": {"upcycle": {"layout": "delta", "rank": 4}}},
    },
    "baseline": "sft",
}
DELTA_FOLDER = "runs/upcycle.layout=delta,upcycle.rank=4/seed-2"
CHOOSE = {"vary": {"tune.lr": [1e-4, 1e-3]}, "seeds": [101]}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(TREE | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choose": CHOOSE | {"seeds": [2, 101, 1]}}, r"choose.seeds: 1, 2 also decide the experiment"),
        ({"seeds": [1, 1]}, "seeds: a seed is there twice"),
        ({"baseline": "sfd"}, "baseline must be one of the methods .*did you mean 'sft'"),
        ({"methods": {"sft": {"row": "sft", "set": {"eval.n": 3}}}}, "methods.sft.set: eval.n must be alike"),
        ({"methods": {"sft": {"row": "sft", "set": {"data": {"heldout": 3}}}}}, "data.heldout must be alike"),
        (
            {"choose": CHOOSE, "methods": {"sft": {"row": "sft", "set": {"tune.lr": 1}}}},
            "tune.lr is set by methods.sft",
        ),
        (
            {"choose": CHOOSE, "methods": {"sft": {"row": "sft", "set": {"tune": {"lr": {}}}}}},
            "tune.lr is set by methods.sft; leave it out in one of the two",
        ),
        ({"choose": CHOOSE | {"set": {"tune.lr": 1}}}, "choose.vary: tune.lr is set by choose.set"),
        ({"against": ["xft", "xft"]}, "against: a method is there twice"),
        ({"choose": CHOOSE | {"vary": {"seed": [1]}}}, "choose.vary: seed is no setting of a method"),
        ({"choose": CHOOSE | {"set": {"seed": 1}}}, "choose.set: the seeds of a screening"),
        ({"choose": CHOOSE | {"vary": {}}}, "choose.vary"),
        ({"choose": CHOOSE | {"vary": {"tune.lr": []}}}, "choose.vary.tune.lr"),
        ({"set": {"seed": 3}}, "set: the seeds of an experiment"),
        ({"method": {}}, "unknown key 'method'; known keys: .*did you mean 'methods'"),
        ({"methods": {"../up": {"row": "sft"}}}, "methods"),
        ({"methods": {"sft": {"rows": "sft"}}}, "methods.sft: unknown key 'rows'; known keys: row, set"),
        ({"keep": "none"}, "keep"),
        ({"seeds": []}, "seeds"),
    ],
)
def test_a_wrong_grid_is_refused_with_the_place_of_its_fault(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        load_grid(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {"sft": {"row": "sfd"}}}, "methods.sft: a run has no row 'sfd'; rows: .*did you mean 'sft'"),
        ({"methods": {"sft": {"row": "soup"}}}, "row soup averages SFT runs; set sft.soup"),
        ({"methods": {"sft": {"row": "sft", "set": {"tune.lrr": 1}}}}, "methods.sft: tiny: tune: unknown key 'lrr'"),
        ({"endpoint": "mbpp"}, "mbpp is to decide, but is not scored; scored: heldout, humaneval"),
        (
            {"endpoint": "humaneval+", "recipe": "smollm2-135m"},
            r"methods.delta: humaneval\+ is to decide, so it can't be optional .* list it without `optional`",
        ),
        (
            {"set": {"eval.benchmarks": [{"name": "mbpp", "optional": True}]}, "endpoint": "mbpp"},
            "mbpp is to decide, so it can't be optional",
        ),
        ({"recipe": "tyny"}, "no such recipe file.*did you mean 'tiny'"),
    ],
)
def test_a_grid_whose_cells_make_no_sense_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        Plan(load_grid(written(tmp_path, **changes))).confirmation({})


def test_a_missing_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such grid file"):
        load_grid(tmp_path / "grid.yaml")


def test_the_recipe_is_found_beside_the_grid_and_overrides_go_to_all_cells(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nbase: here\ndata: [pairs.jsonl]\n")
    grid = load_grid(written(tmp_path, recipe="mine.yaml"), ["tune.lr=0.5", "data=other.jsonl"])
    for cell in Plan(grid).confirmation({}):
        assert (cell.recipe.name, cell.recipe.base, cell.recipe.tune.lr) == ("mine", "here", 0.5)
        assert [source.path for source in cell.recipe.data.sources] == ["other.jsonl"]
        assert (cell.recipe.eval.n, cell.recipe.seed) == (2, cell.seed)
    with pytest.raises(RecipeError, match="overrides have the form key=value"):
        load_grid(written(tmp_path), ["tune.lr"])


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("upcycle.rank=8", "methods.delta.set has upcycle.rank"),
        ("upcycle={rank: 8}", "methods.delta.set has upcycle.layout"),
        ("tune.lr=0.5", "choose.vary has tune.lr"),
        ("data.heldout=5", "choose.set has data.heldout"),
    ],
)
def test_an_override_that_would_be_lost_is_refused(override: str, where: str, tmp_path: Path) -> None:
    path = written(tmp_path, choose=CHOOSE | {"set": {"data.heldout": 9}})
    with pytest.raises(RecipeError, match=f"would be lost where {where}; change it there"):
        load_grid(path, [override])
    assert load_grid(path, ["upcycle.ranks=8", "eval.n=3"]).set["eval.n"] == 3


def test_the_resolved_grid_is_a_grid_and_means_the_same(tmp_path: Path) -> None:
    grid = load_grid(written(tmp_path, choose=CHOOSE), ["tune.epochs=3"])
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(grid.model_dump(mode="json")))
    assert load_grid(again) == grid


def test_methods_with_equal_settings_share_a_run_and_others_do_not(tmp_path: Path) -> None:
    plan = Plan(load_grid(written(tmp_path, choose=CHOOSE)))
    folders = {(cell.method, cell.seed): cell.folder for cell in plan.confirmation({})}
    assert folders["sft", 1] == folders["xft", 1] == "runs/recipe/seed-1"
    assert folders["sft", 2] == "runs/recipe/seed-2"
    assert folders["delta", 1] == "runs/upcycle.layout=delta,upcycle.rank=4/seed-1"
    apart = {cell.method: cell.folder for cell in plan.confirmation({"xft": {"tune.lr": 1e-3}})}
    assert apart == {"sft": "runs/recipe/seed-2", "xft": "runs/tune.lr=0.001/seed-2", "delta": DELTA_FOLDER}
    assert len({cell.name for cell in plan.confirmation({})}) == 6


def test_folders_do_not_depend_on_what_else_is_compared_or_on_the_order_of_settings(tmp_path: Path) -> None:
    turned = {
        "xft": TREE["methods"]["xft"],
        "other": {"row": "xft", "set": {"upcycle.rank": 4, "upcycle.layout": "delta"}},
    }
    whole, fewer = (
        Plan(load_grid(written(tmp_path, choose=CHOOSE, **changes)))
        for changes in ({}, {"methods": turned, "baseline": "xft"})
    )
    for ours, theirs in (("xft", "xft"), ("delta", "other")):
        for cells in (
            lambda plan, _: plan.confirmation({}),
            lambda plan, name: plan.screening(name, {"tune.lr": 1e-3}),
        ):
            left, right = (
                [cell.folder for cell in cells(plan, name) if cell.method == name]
                for plan, name in ((whole, ours), (fewer, theirs))
            )
            assert left == right != []


def test_a_screening_cell_has_the_tried_values_other_seeds_and_no_samples_for_a_loss(tmp_path: Path) -> None:
    plan = Plan(load_grid(written(tmp_path, choose=CHOOSE | {"set": {"data.heldout": 9}})))
    tries = list(plan.combinations())
    assert tries == [{"tune.lr": 1e-4}, {"tune.lr": 1e-3}]
    (cell,) = plan.screening("delta", tries[1])
    assert (cell.seed, cell.recipe.seed, cell.recipe.tune.lr, cell.recipe.data.heldout) == (101, 101, 1e-3, 9)
    assert cell.recipe.eval.benchmarks == []
    assert cell.name == "delta, tune.lr=0.001, seed 101"
    assert plan.screening("xft", tries[0])[0].folder == plan.screening("sft", tries[0])[0].folder
    assert plan.screening("xft", tries[0])[0].folder != plan.screening("xft", tries[1])[0].folder


def test_a_folder_of_a_combination_is_told_apart_however_odd_its_values(tmp_path: Path) -> None:
    vary = {"upcycle.router": ["a/b", "a b"]}
    plan = Plan(load_grid(written(tmp_path, choose={"vary": vary, "seeds": [101]})))
    folders = [plan.screening("sft", each)[0].folder for each in plan.combinations()]
    assert len(set(folders)) == 2
    assert all(folder.count("/") == 3 for folder in folders)


def test_a_cells_command_makes_the_same_recipe(tmp_path: Path) -> None:
    import shlex

    from xft.recipe import load_recipe

    odd = {"data": {"sources": [{"path": "a b.jsonl", "columns": {"input": "in"}}]}, "base": "my model"}
    plan = Plan(load_grid(written(tmp_path, set=odd | {"tune.lr": "3e-4"})))
    for cell in plan.confirmation({}):
        xft, run, recipe, *overrides, out, place = shlex.split(cell.command("tiny"))
        assert (xft, run, out, place) == ("xft", "run", "--out", f"repeated/{cell.folder}")
        assert load_recipe(recipe, overrides) == cell.recipe


def candidate(lr: Any, *scores: float | str) -> Candidate:
    seeds = {str(seed): score for seed, score in enumerate(scores)}
    return Candidate(
        settings={"tune.lr": lr},
        scores={seed: score for seed, score in seeds.items() if isinstance(score, float)},
        failures={seed: score for seed, score in seeds.items() if isinstance(score, str)},
        folders=("a", "b"),
    )


def test_the_best_candidate_has_the_lowest_loss_or_the_highest_rate_and_every_score() -> None:
    tried = [candidate(1, 0.5, 0.7), candidate(2, 0.4, 0.6), candidate(3, 0.4, 0.6), candidate(4, 0.1, "nan")]
    assert best(tried, "heldout") == {"tune.lr": 2}
    assert best(tried, "humaneval") == {"tune.lr": 1}
    assert best(tried[3:], "heldout") == {"tune.lr": 4}


@pytest.mark.parametrize(
    ("chosen", "tried", "edge"), [(1, [1, 2, 3], True), (2, [1, 2, 3], False), ("3e-1", [0.1, "3e-1"], True),
                                  ("a", ["a", "b"], False), (1, [1], False)],
)  # fmt: skip
def test_a_chosen_value_at_the_edge_is_said(chosen: Any, tried: list[Any], edge: bool) -> None:
    choice = Choice(chosen={"tune.lr": chosen}, candidates=tuple(candidate(value, 0.5) for value in tried))
    assert choice.at_edge == (("tune.lr",) if edge else ())


def test_choices_are_read_as_they_were_written(tmp_path: Path) -> None:
    choices = {
        "sft": Choice(chosen={"tune.lr": 2}, candidates=(candidate(1, 0.5, "bang"), candidate(2, 0.4, 0.6)), flops=1e9),
        "base": Choice(chosen={}),
    }
    write_choices(tmp_path, choices)
    assert read_choices(tmp_path) == choices
    assert read_choices(tmp_path / "elsewhere") == {}
