from __future__ import annotations

import gc
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from xft.checkpoint import SINGLE
from xft.data.example import Example
from xft.errors import CheckpointError, RunError
from xft.merge.fit import Merging
from xft.merge.merge import COEFFICIENTS, MergeJob, merge
from xft.merge.methods import MERGE_METHODS
from xft.moe.mixture import Mixture
from xft.prove import Gap
from xft.recipe import MergeConfig, TuneConfig, UpcycleConfig
from xft.stage import Meter
from xft.upcycle import upcycle

IDS = torch.arange(3, 43).reshape(2, 20)


def job(mixture: Path, out: Path, method: str, **changes: Any) -> MergeJob:
    out.mkdir()
    pairs = out.with_suffix(".jsonl")
    examples = [Example(instruction=f"say {n}", response=f"{n} and {n}") for n in range(6)]
    pairs.write_text("".join(json.dumps(asdict(example)) + "\n" for example in examples))
    options: dict[str, Any] = {
        "pairs": pairs, "prompt": "chat", "seed": 3, "data": ["one.jsonl", "shipped:python"],
        "tune": TuneConfig(batch=3, micro_batch=3, max_length=96, precision="fp32"),
        "merge": MergeConfig(shared_weight=0.4, lr=0.3),
    }  # fmt: skip
    return MergeJob(mixture=mixture, out=out, method=method, **(options | changes))


def test_the_learned_merge_writes_the_model_that_its_coefficients_describe(tiny_moe: Path, tmp_path: Path) -> None:
    merge(job(tiny_moe, tmp_path / "out", "learned"), Meter())
    shares_LR = load_file(tmp_path / "out" / COEFFICIENTS)["coefficients"]
    assert float((shares_LR * 3 - 1).abs().max()) > 0.1
    merging = Merging(Mixture(tiny_moe), MergeConfig(shared_weight=0.4)).eval()
    with torch.no_grad():
        merging.logits_LPR.copy_(shares_LR[:, None].log())
        merging.remix()
        expected = merging(input_ids=IDS).logits
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(IDS).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["rounding_error"] == {"largest": 0.0, "mean": 0.0}
    assert summary["movement"] > 0.1


@pytest.mark.parametrize("loss", ["data", "mixture"])
def test_what_learned_is_gone_when_the_merged_model_is_written(
    loss: str, tiny_moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[Any] = []
    monkeypatch.setattr(
        "xft.merge.merge.write_merged",
        lambda *_: alive.extend(each for each in gc.get_objects() if isinstance(each, Merging)) or {},
    )
    monkeypatch.setattr("xft.merge.merge.gap", lambda *_: Gap(divergence=0.0, max_difference=0.0, probe_tokens=1))
    gc.disable()  # it would come by at any time
    try:
        merge(job(tiny_moe, tmp_path / "out", "learned", merge=MergeConfig(shared_weight=0.4, loss=loss)), Meter())
    finally:
        gc.enable()
    assert alive == []


def test_the_uniform_merge_needs_no_data_and_is_what_the_learned_one_starts_from(
    tiny_moe: Path, tmp_path: Path
) -> None:
    merge(job(tiny_moe, tmp_path / "uniform", "uniform", pairs=None), Meter())
    still = MergeConfig(shared_weight=0.4, lr=1e-12)
    merge(job(tiny_moe, tmp_path / "learned", "learned", merge=still), Meter())
    shares_LR = load_file(tmp_path / "uniform" / COEFFICIENTS)["coefficients"]
    torch.testing.assert_close(shares_LR, torch.full((2, 3), 1 / 3))
    one, two = (load_file(tmp_path / name / SINGLE) for name in ("uniform", "learned"))
    assert set(one) == set(two)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_the_merge_loses_is_said(tiny_moe: Path, tmp_path: Path) -> None:
    lost = merge(job(tiny_moe, tmp_path / "out", "uniform", pairs=None), Meter())
    ids = torch.randint(
        json.loads((tiny_moe / "config.json").read_text())["vocab_size"], (4, 48),
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    with torch.no_grad():
        models = map(AutoModelForCausalLM.from_pretrained, (tiny_moe, tmp_path / "out"))
        mixture, merged = (model.eval()(ids).logits for model in models)
    assert lost.max_difference == pytest.approx(float((mixture - merged).abs().max()), rel=1e-3)
    assert lost.max_difference > 1e-3
    expected = F.kl_div(merged.log_softmax(-1), mixture.log_softmax(-1), log_target=True, reduction="sum") / ids.numel()
    assert lost.divergence == pytest.approx(float(expected), rel=1e-2)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["gap"] == asdict(lost)
    assert f"| against the mixture | {lost} |" in (tmp_path / "out" / "README.md").read_text()


def test_a_merge_of_equal_experts_loses_nothing(tiny_dense: Path, tmp_path: Path) -> None:
    (tmp_path / "moe").mkdir()
    upcycle(tiny_dense, tmp_path / "moe", UpcycleConfig(experts=4, active=3), seed=1)
    lost = merge(job(tmp_path / "moe", tmp_path / "out", "uniform", pairs=None), Meter())
    assert lost.max_difference < 1e-5 and abs(lost.divergence) < 1e-6


def test_a_learned_merge_without_pairs_is_refused(tiny_moe: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a learned merge needs pairs"):
        merge(job(tiny_moe, tmp_path / "out", "learned", pairs=None), Meter())


@pytest.mark.parametrize("licensed", [True, False])
def test_the_model_card_has_licence_data_base_and_method(licensed: bool, tiny_moe: Path, tmp_path: Path) -> None:
    mixture = shutil.copytree(tiny_moe, tmp_path / "moe")
    if licensed:
        (mixture / "LICENSE.txt").write_text("do as you like")
    merge(job(mixture, tmp_path / "out", "uniform"), Meter())
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    for fact in (
        "base_model: owner/base", "| merge method | uniform |", "| weight of the shared expert | 0.4 |",
        "| prompt style | chat |", "| seed | 3 |", "- one.jsonl", "- shipped:python", "into 4 experts",
    ):  # fmt: skip
        assert fact in card
    assert ("see LICENSE.txt beside this file" in card) == licensed
    assert (tmp_path / "out" / "LICENSE.txt").exists() == licensed
    assert ("that of the base model; check it" in card) != licensed


@pytest.mark.parametrize("method", sorted(MERGE_METHODS))
def test_every_method_makes_a_model_and_says_so(method: str, tiny_moe: Path, tiny_dense: Path, tmp_path: Path) -> None:
    mixture = shutil.copytree(tiny_moe, tmp_path / "moe")
    loads = [[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]]
    line = {"step": 1, "experts": {"load": loads, "shared_weight": [0.9, 0.9], "dead": 0}}
    (mixture / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    merge(job(mixture, tmp_path / "out", method, base=tiny_dense), Meter())
    with torch.no_grad():
        logits, base = (AutoModelForCausalLM.from_pretrained(at)(IDS).logits for at in (tmp_path / "out", tiny_dense))
    assert torch.isfinite(logits).all()
    assert float((logits - base).abs().max()) > 1e-3
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| merge method | {method}" in card
    assert ("| weight of the shared expert |" in card) == MERGE_METHODS[method].shared_weight
    if method == "router-weighted":
        shares_LR = load_file(tmp_path / "out" / COEFFICIENTS)["coefficients"]
        torch.testing.assert_close(shares_LR, torch.tensor(loads))


def test_what_a_method_needs_and_has_not_is_said(tiny_moe: Path, tiny_dense: Path, tmp_path: Path) -> None:
    sibling = shutil.copytree(tiny_dense, tmp_path / "sibling")
    tensors = load_file(sibling / SINGLE)
    tensors["model.layers.1.mlp.down_proj.weight"] += 1e-3
    save_file(tensors, sibling / SINGLE, metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"ties combines differences from the dense base; give it with --base"):
        merge(job(tiny_moe, tmp_path / "out", "ties"), Meter())
    with pytest.raises(
        CheckpointError, match=r"not the model that .* was upcycled from, 'owner.base@main'; ties combines"
    ):
        merge(job(tiny_moe, tmp_path / "out2", "ties", base=sibling), Meter())
    with pytest.raises(RunError, match=r"metrics\.jsonl: no log of the experts' load"):
        merge(job(tiny_moe, tmp_path / "other", "router-weighted"), Meter())
