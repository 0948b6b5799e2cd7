"""The whole job on a toy model: everything is there, nothing is done twice, nothing is lost, a kill changes nothing."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from xft import pipeline
from xft.errors import FetchError, RecipeError, RunError, SandboxError
from xft.families import FAMILIES
from xft.graph import Node, fingerprints
from xft.merge.methods import equal_coefficients
from xft.merge.write import write_merged
from xft.moe.layouts import LAYOUTS, layout_of
from xft.moe.mixture import Mixture
from xft.moe.routers import ROUTERS
from xft.prove import gap
from xft.recipe import Recipe, UpcycleConfig, load_recipe
from xft.report import collect
from xft.stage import folder_digest, locked, read_manifest
from xft.upcycle import upcycle

STAGES = ["base", "data", "sft", "upcycle", "moe", "merge/uniform", "merge/learned"]
ROWS = ["base", "sft", "moe", "uniform", "xft"]
MODELS = ["sft", "upcycle", "moe", "merge/uniform", "merge/learned"]


@pytest.fixture(scope="session")
def humaneval() -> None:
    """HumanEval's file comes out of a wheel; without network and cache the tests that need it can't run."""
    from xft.eval.benchmarks import BENCHMARKS

    try:
        BENCHMARKS["humaneval"].problems()
    except FetchError:
        pytest.skip("not run: HumanEval")


@pytest.fixture(scope="module")
def overrides(tiny_dense: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    pairs = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    lines = [{"instruction": f"Add {n}.", "response": f"def add(a):\n    return a + {n}"} for n in range(18)]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [f"base={tiny_dense}", f"data={pairs}", "tune.epochs=1"]


def recipe_with(overrides: list[str], *more: str) -> Recipe:
    return load_recipe("tiny", [*overrides, "tune.checkpoint_minutes=0", *more])


def run(recipe: Recipe, out: Path, *, redo: bool = False, answer: bool = False) -> list[str]:
    """Run and return what was said."""
    said: list[str] = []
    page = pipeline.run(recipe, out, redo=redo, confirm=lambda _question: answer, say=said.append)
    assert page == out / "report" / "index.html"
    return said


@pytest.fixture(scope="module")
def finished(humaneval: None, overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whole run that the tests read and never change."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    said = run(recipe_with(overrides), out)
    assert [line.split()[1].rstrip(":") for line in said[::2]] == [*STAGES, *(f"eval/{row}" for row in ROWS)]
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


def done_before(said: list[str]) -> set[str]:
    return {line.split("] ")[1].split(":")[0] for line in said if line.endswith(": done before")}


def made(said: list[str]) -> set[str]:
    return {line.split("] ")[1] for line in said if line.startswith("[") and ": " not in line}


def mtimes(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*") if path.parts[-2] != "report"}


def test_every_stage_has_its_folder_and_manifest(finished: Path) -> None:
    for name in [*STAGES, *(f"eval/{row}" for row in ROWS)]:
        manifest = read_manifest(finished / name)
        assert manifest is not None, name
        assert manifest["stage"] == name
        assert manifest["digest"]
    assert list(finished.rglob("*.partial")) == []
    assert [path for path in finished.rglob("*") if path.suffix in {".bin", ".pt", ".pth", ".pkl"}] == []


def test_the_inputs_in_the_manifests_are_the_digests_of_the_stages_before(finished: Path) -> None:
    for name, before in (("moe", "upcycle"), ("moe", "data"), ("merge/learned", "moe"), ("eval/xft", "merge/learned")):
        manifest, earlier = read_manifest(finished / name), read_manifest(finished / before)
        assert manifest is not None
        assert earlier is not None
        assert manifest["inputs"][before] == earlier["digest"]


def test_every_row_has_samples_verdicts_scores_and_heldout_losses(finished: Path) -> None:
    for row in ROWS:
        folder = finished / "eval" / row / "humaneval"
        samples = (folder / "samples.jsonl").read_text().splitlines()
        verdicts = (folder / "verdicts.jsonl").read_text().splitlines()
        assert len(samples) == len(verdicts) == 4  # every 41st of 164
        assert json.loads((folder / "scores.json").read_text())["problems"] == 4
        assert len((finished / "eval" / row / "heldout" / "losses.jsonl").read_text().splitlines()) == 6


def test_the_resolved_recipe_stands_beside_the_results(finished: Path, overrides: list[str]) -> None:
    assert Recipe.model_validate(yaml.safe_load((finished / "recipe.yaml").read_text())) == recipe_with(overrides)


def test_the_report_is_there_with_all_rows(finished: Path) -> None:
    page = (finished / "report" / "index.html").read_text()
    assert all(label in page for label in ("Base", "SFT", "MoE", "Uniform", "XFT"))


def test_the_control_gets_as_many_epochs_as_the_mixture(finished: Path) -> None:
    trained = {name: (read_manifest(finished / name) or {})["tokens"] for name in ("sft", "moe")}
    assert trained["sft"] == trained["moe"] > 0


def test_the_merged_models_are_the_bases_own_architecture(finished: Path) -> None:
    base = json.loads((finished / "base" / "config.json").read_text())
    for name in ("merge/learned", "merge/uniform"):
        config = json.loads((finished / name / "config.json").read_text())
        assert (config["model_type"], config["architectures"]) == (base["model_type"], base["architectures"])
        shapes = {key: value.shape for key, value in load_file(finished / name / "model.safetensors").items()}
        assert shapes == {key: value.shape for key, value in load_file(finished / "base" / "model.safetensors").items()}


def test_a_soup_is_the_mean_of_sft_runs_on_the_same_pairs_with_other_seeds(
    copied: Path, overrides: list[str], tmp_path: Path
) -> None:
    before = read_manifest(copied / "sft")
    said = run(recipe_with(overrides, "sft.soup=2"), copied)
    assert made(said) == {"soup/2", "soup/mean", "eval/soup"}
    assert read_manifest(copied / "sft") == before
    members = [load_file(copied / name / "model.safetensors") for name in ("sft", "soup/2")]
    soup = load_file(copied / "soup/mean" / "model.safetensors")
    assert any(not torch.equal(members[0][name], members[1][name]) for name in soup)
    for name, tensor in soup.items():
        torch.testing.assert_close(tensor, (members[0][name] + members[1][name]) / 2)
    second = read_manifest(copied / "soup/2")
    assert before is not None
    assert second is not None
    assert second["inputs"] == before["inputs"]
    assert second["config"]["epochs"] == before["config"]["epochs"]
    row = collect(copied).row("soup")
    assert row.cost is not None
    assert row.cost.flops == before["flops"] + second["flops"]


@pytest.mark.slow
def test_a_mixture_can_be_made_of_a_soups_members(copied: Path, overrides: list[str]) -> None:
    before = read_manifest(copied / "sft")
    changes = [*overrides, "sft.soup=2", "upcycle.experts_from=soup", "merge.also=ties"]
    said = run(recipe_with(changes), copied, redo=True)
    assert {"soup/2", "soup/mean", "upcycle", "moe", "merge/uniform", "merge/ties", "eval/moe"} <= made(said)
    assert read_manifest(copied / "sft") == before
    base = load_file(copied / "soup/mean" / "model.safetensors")
    mixture = load_file(copied / "upcycle" / "model.safetensors")
    name = "model.layers.0.mlp.{}down_proj{}"
    assert torch.equal(mixture[name.format("shared_expert.", ".weight")], base[name.format("", ".weight")])
    for number, member in enumerate(("sft", "soup/2")):
        own = load_file(copied / member / "model.safetensors")[name.format("", ".weight")]
        assert torch.equal(mixture[name.format("experts.", "")][number], own)
    report = collect(copied)
    flops = {stage: read_manifest(copied / stage)["flops"] for stage in ("sft", "soup/2", "moe", "merge/learned")}
    cost = report.row("xft").cost
    assert cost is not None
    assert cost.flops == sum(flops.values())


@pytest.mark.parametrize(("settings", "message"), [
    (["upcycle.router=slices", "upcycle.active=1", "tune.train=routers"], "the router slices has no gate"),
    (["upcycle.router=slices", "upcycle.gate=linear", "upcycle.gate_noise=false", "tune.balance=0", "tune.z_loss=0.1"],
     "the router slices has no gate: leave out gate, gate_noise, balance, z_loss"),
    (["upcycle.router=topk-softmax", "merge.learn_shared_weight=true"],
     "merge: no shared expert is weighed .*; leave learn_shared_weight out"),
    (["upcycle.router=topk-softmax", "merge.shared_weight=0.5"], "merge: .*; leave shared_weight out"),
    (["upcycle.router=deepseek", "upcycle.layout=split", "upcycle.parts=2", "merge.shared_weight=0.5"],
     "merge: no shared expert is weighed against the routed ones; leave shared_weight out"),
    (["upcycle.layout=split", "upcycle.parts=2"], "router shared-normalized divides a weight .*; choose one of"),
])  # fmt: skip
def test_what_would_fail_or_do_nothing_hours_later_is_refused_at_once(
    settings: list[str], message: str, overrides: list[str]
) -> None:
    with pytest.raises(RecipeError, match=message):
        pipeline.look_up_names(recipe_with(overrides, *settings))


def test_a_machine_that_can_not_score_is_found_before_the_training(
    humaneval: None, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xft.eval.sandbox.sandbox.detect_level", lambda: ("unsafe", "no namespaces"))
    with pytest.raises(SandboxError, match="no sandbox works here"):
        run(recipe_with(overrides), tmp_path / "run")
    assert not [path for path in (tmp_path / "run").iterdir() if path.is_dir()]


def test_experts_of_a_soup_need_one(overrides: list[str]) -> None:
    with pytest.raises(RecipeError, match=r"experts_from=soup takes the SFT runs of a soup; set sft\.soup"):
        recipe_with(overrides, "upcycle.experts_from=soup")
    idle = recipe_with(overrides, "upcycle.experts_from=soup", "sft.soup=5", "upcycle.experts=4", "upcycle.active=2")
    with pytest.raises(RecipeError, match="5 models for 3 routed experts"):
        pipeline.look_up_names(idle)


def test_other_models_for_the_experts_make_another_mixture(
    overrides: list[str], tiny_bf16: Path, tmp_path: Path
) -> None:
    def upcycled(model: Path) -> Any:
        nodes = pipeline.graph(recipe_with(overrides, f"upcycle.experts_from={model}"), tmp_path)
        return next(node for node in nodes if node.name == "upcycle")

    other = shutil.copytree(tiny_bf16, tmp_path / "same-name" / tiny_bf16.name)
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    (one,), (two,) = (upcycled(model).outside.values() for model in (tiny_bf16, other))
    assert one != two


def test_sft_can_have_epochs_of_its_own(overrides: list[str], tmp_path: Path) -> None:
    nodes = {node.name: node for node in pipeline.graph(recipe_with(overrides, "sft.epochs=5"), tmp_path)}
    usual = {node.name: node for node in pipeline.graph(recipe_with(overrides), tmp_path)}
    assert (nodes["sft"].config["epochs"], usual["sft"].config["epochs"]) == (5, 1)
    assert {name for name in nodes if nodes[name].config != usual[name].config} == {"sft"}


def test_a_moved_base_makes_nothing_anew(copied: Path, overrides: list[str], tiny_dense: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(tiny_dense, tmp_path / "moved")
    for link in (copied / "base").iterdir():
        if link.is_symlink():
            link.unlink()
            link.symlink_to(tmp_path / "where it was" / link.name)
    claim_hours(copied, ("sft", "moe"))
    said = run(recipe_with([*overrides, f"base={moved}"]), copied)
    assert made(said) == set()
    assert (copied / "base" / "config.json").resolve() == moved / "config.json"


def test_space_is_needed_for_all_that_must_be_made_but_for_what_is_there(overrides: list[str]) -> None:
    recipe = recipe_with(overrides, "merge.also=ties")
    whole = pipeline.space_needed(recipe, {"sft": 0})
    assert pipeline.space_needed(recipe, {"sft": 100, "eval/xft": 100}) == whole - 100 > 0
    merges = [pipeline.space_needed(recipe, {f"merge/{name}": 0}) for name in ("ties", "uniform", "learned")]
    assert merges[0] == merges[1] == merges[2] > 0


def test_held_out_pairs_are_read_as_far_as_those_that_are_trained_on(overrides: list[str], tmp_path: Path) -> None:
    def scoring(*more: str) -> Node:
        return next(
            node for node in pipeline.graph(recipe_with(overrides, *more), tmp_path) if node.name == "eval/base"
        )

    assert scoring().config == scoring("tune.max_length=512").config
    assert scoring().config["heldout_tokens"] == 1024
    assert scoring("tune.max_length=2048").config["heldout_tokens"] == 2048


def test_moved_data_makes_nothing_anew(overrides: list[str], tmp_path: Path) -> None:
    (given,) = (each.removeprefix("data=") for each in overrides if each.startswith("data="))
    moved = shutil.copy(given, tmp_path / "pairs.jsonl")
    usual, other = (fingerprints(pipeline.graph(recipe_with([*overrides, f"data={path}"]), tmp_path), seed=1)
                    for path in (given, moved))  # fmt: skip
    assert usual == other


@pytest.mark.parametrize(("more", "changed"), [
    (["tune.routed_lr=1", "tune.balance=1", "tune.z_loss=1", "tune.average_experts=1", "tune.train=experts"],
     {"moe", "merge/learned"}),
    (["tune.lr=1", "tune.epochs=9"], {"moe", "merge/learned"}),
    (["tune.batch=8"], {"sft", "moe", "merge/learned"}),
    (["tune.checkpoint_minutes=1"], set()),
])  # fmt: skip
def test_a_key_that_a_training_does_not_heed_does_not_make_it_anew(
    more: list[str], changed: set[str], overrides: list[str], tmp_path: Path
) -> None:
    own = [*overrides, "sft.lr=1e-4", "sft.epochs=2"]
    usual = pipeline.graph(load_recipe("tiny", own), tmp_path)
    other = pipeline.graph(load_recipe("tiny", [*own, *more]), tmp_path)
    assert {now.name for then, now in zip(usual, other, strict=True) if then.config != now.config} == changed


def test_a_second_run_does_nothing(copied: Path, overrides: list[str]) -> None:
    before = mtimes(copied)
    said = run(recipe_with(overrides), copied)
    assert done_before(said) == {*STAGES, *(f"eval/{row}" for row in ROWS)}
    assert made(said) == set()
    ignored = {str(copied / "recipe.yaml"), str(copied), str(copied / ".lock"), str(copied / "report")}
    after = mtimes(copied)
    assert {path for path in before if path not in ignored and after[path] != before[path]} == set()
    assert after.keys() == before.keys()


def test_a_changed_merge_setting_redoes_the_merge_only_and_back_restores_it(copied: Path, overrides: list[str]) -> None:
    old = read_manifest(copied / "merge/learned")
    assert old is not None
    digest = folder_digest(copied / "merge/learned")
    said = run(recipe_with(overrides, "merge.lr=0.5"), copied)
    assert made(said) == {"merge/learned", "eval/xft"}
    assert any(line.startswith("changed inputs: will redo merge/learned (") for line in said)
    aside = copied / "merge" / f"learned.{old['key'][:8]}"
    assert folder_digest(aside) == digest
    changed = folder_digest(copied / "merge/learned")
    assert changed != digest

    claim_hours(copied, ("merge/learned", "eval/xft"))
    said = run(recipe_with(overrides), copied)  # nothing is redone, so nothing is asked
    assert made(said) == set()
    assert not [line for line in said if "will redo" in line]
    assert folder_digest(copied / "merge/learned") == digest
    assert not aside.exists()
    kept = [path for path in (copied / "merge").iterdir() if path.name.startswith("learned.")]
    assert [folder_digest(path) for path in kept] == [changed]


def test_a_changed_shared_weight_redoes_both_merges_and_their_scores(copied: Path, overrides: list[str]) -> None:
    said = run(recipe_with(overrides, "merge.shared_weight=0.5"), copied)
    assert made(said) == {"merge/uniform", "merge/learned", "eval/uniform", "eval/xft"}


def test_the_type_of_scoring_is_known_by_its_name_and_makes_only_scores_anew(
    humaneval: None, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def contents(precision: str, *, fast: bool = False) -> dict[str, str]:
        monkeypatch.setattr("xft.device.fast_bf16", lambda: fast)
        return fingerprints(pipeline.graph(recipe_with(overrides, f"eval.precision={precision}"), tmp_path), 0)

    bf16, fp32 = contents("bf16"), contents("fp32")
    assert {name for name in fp32 if fp32[name] != bf16[name]} == {f"eval/{row}" for row in ROWS}
    assert contents("auto") == fp32
    assert contents("auto", fast=True) == bf16


def test_a_changed_seed_counts_as_a_change(copied: Path, overrides: list[str]) -> None:
    claim_hours(copied, ("sft", "moe", "merge/learned"))
    with pytest.raises(RunError, match=r"of work would be redone \(base .*, moe \(5:01\)"):
        run(recipe_with(overrides, "seed=7"), copied)


def claim_hours(out: Path, names: tuple[str, ...]) -> None:
    for name in names:
        path = out / name / "manifest.json"
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps(manifest | {"wall_seconds": 301.0}))


def test_more_than_ten_minutes_of_work_are_not_redone_without_a_word(copied: Path, overrides: list[str]) -> None:
    claim_hours(copied, ("merge/learned", "eval/xft"))
    before = folder_digest(copied)
    with pytest.raises(
        RunError, match=r"10:02 of work would be redone \(merge/learned \(5:01\), eval/xft \(5:01\)\)"
    ) as caught:
        run(recipe_with(overrides, "merge.lr=0.5"), copied)
    assert "--redo" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert folder_digest(copied) == before

    assert made(run(recipe_with(overrides, "merge.lr=0.5"), copied, redo=True)) == {"merge/learned", "eval/xft"}


def test_a_yes_redoes_and_ten_minutes_or_less_need_none(copied: Path, overrides: list[str]) -> None:
    claim_hours(copied, ("merge/learned", "eval/xft"))
    assert "merge/learned" in made(run(recipe_with(overrides, "merge.lr=0.5"), copied, answer=True))


def test_a_folder_that_is_no_run_is_refused_and_untouched(tmp_path: Path, overrides: list[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="holds something else than a run; give another folder with --out"):
        run(recipe_with(overrides), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_second_process_on_the_run_directory_is_refused(copied: Path, overrides: list[str]) -> None:
    holder = "import sys, time\nfrom pathlib import Path\nfrom xft.stage import locked\n"
    holder += "with locked(Path(sys.argv[1])):\n    print('locked', flush=True)\n    time.sleep(60)\n"
    process = subprocess.Popen([sys.executable, "-c", holder, str(copied / ".lock")], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(RunError, match=f"process {process.pid} is writing here"):
            run(recipe_with(overrides), copied)
    finally:
        process.kill()
        process.communicate()
    with locked(copied / ".lock"):
        pass  # the kill left no lock behind


def command(overrides: list[str], out: Path) -> list[str]:
    return [sys.executable, "-c", "from xft.cli import main; main()", "run", "tiny", *overrides, "--out", str(out)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_anywhere_and_run_again_gives_the_same_models(
    seed: int, finished: Path, overrides: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    stage = random.Random(seed).choice(["sft", "upcycle", "moe", "merge/learned", "eval/base", "eval/xft"])
    process = subprocess.Popen(command(overrides, out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    partial = out / f"{stage}.partial"
    while process.poll() is None and not partial.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(random.Random(seed).uniform(0, 0.15))
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    assert not (out / "report" / "index.html").exists()

    again = subprocess.run(command(overrides, out), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    for name in MODELS:
        wanted = load_file(finished / name / "model.safetensors")
        ours = load_file(out / name / "model.safetensors")
        assert wanted.keys() == ours.keys()
        assert all(torch.equal(wanted[key], ours[key]) for key in wanted), name
    for name in ("sft", "moe", "merge/learned"):
        lines = [json.loads(line) for line in (out / name / "metrics.jsonl").read_text().splitlines()]
        steps: list[Any] = [line["step"] for line in lines]
        assert steps == list(range(1, len(steps) + 1))
    for row in ROWS:
        paths = [folder / "eval" / row / "humaneval" / "samples.jsonl" for folder in (finished, out)]
        assert paths[0].read_text() == paths[1].read_text()
    assert list(out.rglob("*.partial")) == []


EXPERTS_PAGE = Path(__file__).parents[1] / "docs" / "experts.md"
DOCUMENTED = re.findall(r"^\| `(layout=[^`]+)` \| (yes|no) \|", EXPERTS_PAGE.read_text(encoding="utf-8"), re.M)
"""Every mixture of the table, and whether it starts as its base."""


def documented(overrides: list[str], row: str, *more: str) -> Recipe:
    return recipe_with(overrides, *(f"upcycle.{setting}" for setting in row.split()), "eval.max_new_tokens=2", *more)


def fits(layout: str, router: str) -> bool:
    shared = int(ROUTERS[router].shared)
    given = {"layout": layout, "router": router, "experts": 4 + shared, "active": 2 + shared}
    try:
        layout_of(UpcycleConfig.model_validate(given | ({"parts": 2} if layout == "split" else {})), FAMILIES["llama"])
    except RecipeError:
        return False
    return True


def test_every_layout_is_documented_with_every_router_that_it_takes() -> None:
    settings = [dict(setting.split("=") for setting in row.split()) for row, _ in DOCUMENTED]
    named = {(each["layout"], each["router"]) for each in settings}
    assert named == {(layout, router) for layout in LAYOUTS for router in ROUTERS if fits(layout, router)}


@pytest.mark.slow
def test_the_documented_table_is_what_the_code_counts() -> None:
    script = EXPERTS_PAGE.parents[1] / "benchmarks" / "experts_table.py"
    printed = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    assert len(printed.splitlines()) > 20
    assert printed in EXPERTS_PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(("row", "starts"), DOCUMENTED)
def test_a_documented_mixture_fits_and_gives_its_base_back(
    row: str, starts: str, overrides: list[str], tmp_path: Path
) -> None:
    recipe = documented(overrides, row)
    pipeline.look_up_names(recipe)
    for name in ("moe", "merged"):
        (tmp_path / name).mkdir()
    upcycle(Path(recipe.base), tmp_path / "moe", recipe.upcycle, seed=1)
    mixture = Mixture(tmp_path / "moe")
    assert mixture.preserves_dense == (starts == "yes")
    parts, weight = mixture.settings.parts, 0.75 if mixture.layout.weighs_shared else None
    coefficients = equal_coefficients(len(mixture.mixed_layers), mixture.routed, weight, parts)
    write_merged(mixture, coefficients, tmp_path / "merged")
    assert gap(tmp_path / "moe", tmp_path / "merged").max_difference < 1e-4 or not mixture.preserves_dense
    one, two = (load_file(Path(each) / "model.safetensors") for each in (recipe.base, tmp_path / "merged"))
    assert set(one) == set(two)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("row", "starts"), DOCUMENTED)
def test_a_documented_mixture_goes_the_whole_way(
    row: str, starts: str, overrides: list[str], humaneval: None, tmp_path: Path
) -> None:
    recipe = documented(overrides, row, "merge.also=ties")
    run(recipe, tmp_path / "run")
    proof = json.loads((tmp_path / "run" / "upcycle" / "proof.json").read_text())
    assert proof["preserves_dense"] == (starts == "yes")
    losses = {
        row: json.loads((tmp_path / "run" / "eval" / row / "heldout" / "scores.json").read_text())["mean"]
        for row in (*ROWS, "ties")
    }
    assert max(losses["moe"], losses["uniform"], losses["xft"]) < losses["base"]
    lost = json.loads((tmp_path / "run" / "merge" / "learned" / "summary.json").read_text())["gap"]
    assert 0 < lost["divergence"] < 10
    last = json.loads((tmp_path / "run" / "moe" / "metrics.jsonl").read_text().splitlines()[-1])
    assert [len(row) for row in last["experts"]["load"]] == [layout_of(recipe.upcycle, FAMILIES["llama"]).routed] * 2
