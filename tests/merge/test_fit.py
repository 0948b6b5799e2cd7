from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, AutoTokenizer

from xft.data.example import Example
from xft.data.prepare import read_pairs
from xft.errors import DivergedError
from xft.families import FAMILIES
from xft.merge.fit import FitJob, LayerByLayer, Merging, fit
from xft.moe.mixture import Mixture
from xft.recipe import MergeConfig, TuneConfig
from xft.stage import Meter
from xft.tune.callbacks import METRICS, MetricsFile
from xft.tune.dataset import Collator, encode_all

LAMBDA = 0.6
CONFIG = TuneConfig(batch=4, micro_batch=2, max_length=128, precision="fp32", checkpoint_minutes=60, warmup=0.0)


def micro_batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    batches = []
    for length in (7, 12, 9):
        ids = torch.randint(0, 260, (2, length), generator=generator)
        batches.append({"input_ids": ids, "labels": ids})
    return batches


def moved(merging: Merging, seed: int = 6) -> Merging:
    """Give a merging coefficients that are not uniform."""
    with torch.no_grad():
        merging.logits_LPR.copy_(torch.randn(merging.logits_LPR.shape, generator=torch.Generator().manual_seed(seed)))
    merging.remix()
    return merging


def materialised(merging: Merging, mixture: Path, shared_weight: float, logits_LPR: Tensor) -> dict[str, Tensor]:
    """The merged matrices as plain functions of `a`, from the mixture's file: what autograd can go through."""
    tensors = load_file(mixture / "model.safetensors")
    weights = {}
    for layer in range(2):
        shares_R, ffn = torch.softmax(logits_LPR[layer, 0], 0), merging.family.ffn(layer)
        for name in [name for name in tensors if name.startswith(f"{ffn}.shared_expert.")]:
            stack = name.replace(".shared_expert.", ".experts.").removesuffix(".weight").replace(".bias", "_bias")
            routed = torch.einsum("r,r...->...", shares_R, tensors[stack].float())
            mixed = shared_weight * tensors[name].float() + (1 - shared_weight) * routed
            weights[name.replace(".shared_expert.", ".")] = mixed
    return weights


@pytest.mark.sampled
@pytest.mark.parametrize("shared_weight", [0.0, LAMBDA, 1.0])
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_contraction_gives_the_gradient_of_autograd_through_the_mixed_matrices(
    model_type: str, shared_weight: float, moe_of: Callable[..., Path]
) -> None:
    mixture = moe_of(model_type)
    merging = moved(Merging(Mixture(mixture), MergeConfig(shared_weight=shared_weight))).eval()
    reference_LR = merging.logits_LPR.detach().clone().requires_grad_()
    for batch in micro_batches():
        merging(**batch).loss.backward()  # accumulates on the merged matrices
        weights = materialised(merging, mixture, shared_weight, reference_LR)
        functional_call(merging.dense, weights, kwargs=batch).loss.backward()
    merging.contract()
    assert merging.logits_LPR.grad is not None
    assert reference_LR.grad is not None
    assert (reference_LR.grad.abs().max() > 1e-3) == (shared_weight < 1)
    torch.testing.assert_close(merging.logits_LPR.grad, reference_LR.grad, rtol=1e-3, atol=1e-6)
    assert all(weight.grad is None for _, weight in merging.ffn_weights())  # the next step starts from nothing


@pytest.mark.parametrize("per", ["layer", "matrix"])
@pytest.mark.parametrize("prior", [0.0, 0.5])
def test_the_gradient_of_a_learned_shared_weight_is_that_of_autograd_with_its_prior(
    prior: float, per: str, tiny_moe: Path
) -> None:
    config = MergeConfig(shared_weight=LAMBDA, learn_shared_weight=True, per=per, prior=prior)
    merging = moved(Merging(Mixture(tiny_moe), config)).eval()
    assert merging.shift_LP is not None
    with torch.no_grad():
        merging.shift_LP.copy_(torch.linspace(-0.7, 0.4, merging.shift_LP.numel()).view_as(merging.shift_LP))
    merging.remix()
    tensors = load_file(tiny_moe / "model.safetensors")
    logits_LPR, shift_LP = (
        parameter.detach().clone().requires_grad_() for parameter in (merging.logits_LPR, merging.shift_LP)
    )
    weights = {}
    for layer in range(2):
        for number, name in enumerate(("gate_proj", "up_proj", "down_proj")):
            place, prefix = (number if per == "matrix" else 0), f"model.layers.{layer}.mlp"
            shared_weight = torch.sigmoid(torch.tensor(LAMBDA).logit() + shift_LP[layer, place])
            shares_R = logits_LPR[layer, place].softmax(-1)
            routed = torch.einsum("r,rij->ij", shares_R, tensors[f"{prefix}.experts.{name}"])
            shared = tensors[f"{prefix}.shared_expert.{name}.weight"]
            weights[f"{prefix}.{name}.weight"] = shared_weight * shared + (1 - shared_weight) * routed
    batch = micro_batches()[0]
    (functional_call(merging.dense, weights, kwargs=batch).loss + prior / 2 * shift_LP.square().sum()).backward()
    merging(**batch).loss.backward()
    merging.contract()
    for ours, reference in ((merging.logits_LPR, logits_LPR), (merging.shift_LP, shift_LP)):
        assert ours.grad is not None
        assert reference.grad is not None
        assert reference.grad.abs().max() > 1e-3
        torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("per", ["layer", "matrix"])
def test_going_layer_by_layer_moves_the_coefficients_as_one_step_of_adamw_and_reads_each_layer_at_one_time(
    per: str, tiny_moe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MergeConfig(shared_weight=LAMBDA, learn_shared_weight=True, per=per)
    ours, reference = (moved(Merging(Mixture(tiny_moe), config)).eval() for _ in range(2))
    optimizer, adamw = LayerByLayer(ours, lr=0.1), AdamW(reference.parameters(), lr=0.1, weight_decay=0.0)
    read: list[int] = []
    pieces = Mixture.pieces

    def noting(self: Mixture, layer: int, part: Any) -> Any:
        read.append(layer)
        return pieces(self, layer, part)

    for batch in micro_batches():  # Adam's moments differ from the second step on
        ours(**batch).loss.backward()
        with monkeypatch.context() as patch:
            patch.setattr(Mixture, "pieces", noting)
            optimizer.step()
        reference(**batch).loss.backward()
        reference.contract()
        adamw.step()
        reference.remix()
        for moved_ours, moved_reference in zip(ours.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(moved_ours, moved_reference, rtol=1e-6, atol=1e-7)
        for (_, weight), (_, other) in zip(ours.ffn_weights(), reference.ffn_weights(), strict=True):
            torch.testing.assert_close(weight, other, rtol=1e-5, atol=1e-6)
            assert weight.grad is None
    assert [layer for layer, _ in groupby(read)] == [0, 1] * 3
    assert ours.movement() > 0.01


def test_a_gradient_that_is_not_finite_stops_before_the_coefficients_of_its_layer_move(tiny_moe: Path) -> None:
    merging = moved(Merging(Mixture(tiny_moe), MergeConfig(shared_weight=LAMBDA))).eval()
    optimizer = LayerByLayer(merging, lr=0.1)
    for step in (1, 2):
        before = merging.logits_LPR.detach().clone()
        merging(**micro_batches()[0]).loss.backward()
        if step == 1:
            optimizer.step()
            continue
        (_, weight), *_ = merging.ffn_weights(only=1)
        assert weight.grad is not None
        weight.grad[2, 3] = torch.inf
        with pytest.raises(DivergedError, match=r"step 2: layer 1's coefficients have no finite .*; lower merge\.lr"):
            optimizer.step()
        assert torch.equal(merging.logits_LPR[1], before[1])
        assert not torch.equal(merging.logits_LPR[0], before[0])


def test_a_loss_of_the_merge_that_is_not_finite_names_the_merges_rate(
    tiny_moe: Path, pairs: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(tiny_moe, tmp_path / "moe")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.inf
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DivergedError, match=r"step 1: the loss is nan; lower merge\.lr"):
        fit(job(broken, pairs, tmp_path / "out"), Meter())


def test_a_mixture_without_a_shared_expert_is_merged_from_its_routed_ones(tiny_dense: Path, tmp_path: Path) -> None:
    from xft.recipe import UpcycleConfig
    from xft.upcycle import upcycle

    upcycle(tiny_dense, tmp_path, UpcycleConfig(experts=4, active=2, router="topk-softmax"), seed=1)
    merging = Merging(Mixture(tmp_path), MergeConfig(learn_shared_weight=True))
    assert merging.shift_LP is None
    assert merging.logits_LPR.shape == (2, 1, 4)
    assert merging.coefficients().shared_LP is None


def test_learning_from_the_mixture_lowers_the_divergence_from_its_predictions(
    tiny_moe: Path, pairs: Path, tmp_path: Path
) -> None:
    told = job(tiny_moe, pairs, tmp_path / "out")
    fit(replace(told, merge=told.merge.model_copy(update={"loss": "mixture", "epochs": 4})), Meter())
    lines = [json.loads(line) for line in (tmp_path / "out" / METRICS).read_text().splitlines()]
    rows, _ = encode_all(read_pairs(pairs), AutoTokenizer.from_pretrained(tiny_moe), "chat", 128)
    batch = Collator(0)(rows)
    teacher = AutoModelForCausalLM.from_pretrained(tiny_moe).eval()
    student = Merging(Mixture(tiny_moe), told.merge).eval()
    kept = batch["labels"][:, 1:] != -100
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        ours, theirs = (model(**inputs).logits[:, :-1][kept].log_softmax(-1) for model in (student, teacher))
    expected = float((theirs.exp() * (theirs - ours)).sum(-1).mean())
    assert sum(line["loss"] for line in lines[:2]) / 2 == pytest.approx(expected, rel=0.2)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_contraction_starts_anew_with_every_step(tiny_moe: Path) -> None:
    merging = moved(Merging(Mixture(tiny_moe), MergeConfig(shared_weight=LAMBDA))).eval()
    batch = micro_batches()[0]
    found = []
    for _ in range(2):
        merging(**batch).loss.backward()
        merging.contract()
        assert merging.logits_LPR.grad is not None
        found.append(merging.logits_LPR.grad.clone())
    assert torch.equal(*found)


def test_experts_that_are_equal_give_no_gradient(tiny_dense: Path, tmp_path: Path) -> None:
    from xft.recipe import UpcycleConfig
    from xft.upcycle import upcycle

    upcycle(tiny_dense, tmp_path, UpcycleConfig(experts=4, active=3), seed=1)
    merging = moved(Merging(Mixture(tmp_path), MergeConfig(shared_weight=LAMBDA))).eval()
    merging(**micro_batches()[0]).loss.backward()
    merging.contract()
    assert merging.logits_LPR.grad is not None
    assert float(merging.logits_LPR.grad.abs().max()) < 1e-6


def test_the_coefficients_are_the_only_parameters_and_all_that_a_checkpoint_holds(tiny_moe: Path) -> None:
    merging = Merging(Mixture(tiny_moe), MergeConfig(shared_weight=LAMBDA))
    assert [name for name, _ in merging.named_parameters()] == ["logits_LPR"]
    assert list(merging.state_dict()) == ["logits_LPR"]
    assert merging.logits_LPR.shape == (2, 1, 3)
    trained = {name for name, parameter in merging.dense.named_parameters() if parameter.requires_grad}
    assert trained == {name for layer in range(2) for name in FAMILIES["llama"].ffn_tensors(layer)}


def test_movement_is_zero_for_the_uniform_merge_and_r_minus_one_for_a_single_expert(tiny_moe: Path) -> None:
    merging = Merging(Mixture(tiny_moe), MergeConfig(shared_weight=LAMBDA))
    assert merging.movement() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        merging.logits_LPR[1, 0, 2] = 100.0
    assert merging.movement() == pytest.approx(2, abs=1e-6)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
    path = tmp_path / "pairs.jsonl"
    examples = [Example(instruction=f"say {word}", response=f"{word} {word}!") for word in words]
    path.write_text("".join(json.dumps(asdict(example)) + "\n" for example in examples))
    return path


def job(mixture: Path, pairs: Path, out: Path, **changes: Any) -> FitJob:
    out.mkdir(exist_ok=True)
    tune = CONFIG.model_copy(update=changes)
    merge = MergeConfig(shared_weight=0.2, epochs=2, lr=0.2)
    return FitJob(mixture=mixture, pairs=pairs, out=out, prompt="chat", seed=3, tune=tune, merge=merge)


def mean_loss(merging: Merging, pairs: Path, mixture: Path) -> float:
    rows, _ = encode_all(read_pairs(pairs), AutoTokenizer.from_pretrained(mixture), "chat", 128)
    with torch.no_grad():
        return float(merging.eval()(**Collator(0)(rows)).loss)


def test_fitting_moves_coefficients_lowers_the_loss_and_changes_nothing_else(
    tiny_moe: Path, pairs: Path, tmp_path: Path
) -> None:
    before = {path.name: sha256(path.read_bytes()).hexdigest() for path in tiny_moe.iterdir()}
    started = Merging(Mixture(tiny_moe), MergeConfig(shared_weight=0.2))
    meter = Meter()
    shares_LPR = fit(job(tiny_moe, pairs, tmp_path / "out"), meter).shares_LPR

    assert {path.name: sha256(path.read_bytes()).hexdigest() for path in tiny_moe.iterdir()} == before
    torch.testing.assert_close(shares_LPR.sum(-1), torch.ones(2, 1))
    movement = float((shares_LPR * 3 - 1).abs().max())
    assert movement > 0.1
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["movement"] == pytest.approx(movement)
    assert summary["rows"] == 10

    fitted = Merging(Mixture(tiny_moe), MergeConfig(shared_weight=0.2))
    with torch.no_grad():
        fitted.logits_LPR.copy_(shares_LPR.log())
    fitted.remix()
    assert mean_loss(fitted, pairs, tiny_moe) < mean_loss(started, pairs, tiny_moe) - 0.01

    lines = [json.loads(line) for line in (tmp_path / "out" / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5] == list(range(1, summary["steps"] + 1))
    assert 0 < lines[0]["movement"] < lines[-1]["movement"] == pytest.approx(movement)
    assert meter.tokens == lines[-1]["tokens"] > 0
    assert not (tmp_path / "out" / "resume").exists()


def test_dense_weights_outside_the_ffns_never_move(tiny_moe: Path, monkeypatch: pytest.MonkeyPatch, pairs: Path,
                                                   tmp_path: Path) -> None:  # fmt: skip
    seen: list[Merging] = []
    original = Merging.__init__
    monkeypatch.setattr(Merging, "__init__", lambda self, *args: (original(self, *args), seen.append(self))[0])
    fit(job(tiny_moe, pairs, tmp_path / "out"), Meter())
    (merging,) = seen
    source = load_file(tiny_moe / "model.safetensors")
    for name, parameter in merging.dense.named_parameters():
        if ".mlp." not in name:
            assert torch.equal(parameter, source[name]), name
            assert parameter.grad is None, name
    for name, weight in materialised(merging, tiny_moe, 0.2, merging.logits_LPR.detach()).items():
        torch.testing.assert_close(merging.dense.get_parameter(name).detach(), weight, rtol=1e-5, atol=1e-6)


def test_the_logged_loss_is_the_plain_cross_entropy_of_the_responses(
    tiny_moe: Path, pairs: Path, tmp_path: Path
) -> None:
    fit(job(tiny_moe, pairs, tmp_path / "out", batch=10, micro_batch=2), Meter())
    first = json.loads((tmp_path / "out" / METRICS).read_text().splitlines()[0])
    expected = mean_loss(Merging(Mixture(tiny_moe), MergeConfig(shared_weight=0.2)), pairs, tiny_moe)
    assert first["loss"] == pytest.approx(expected, rel=1e-4)


class Interrupted(Exception):
    """Stands for Ctrl-C or a kill."""


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = MetricsFile.on_log

    def on_log(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        original(self, args, state, control, **kwargs)
        if state.global_step == step:
            raise Interrupted

    monkeypatch.setattr(MetricsFile, "on_log", on_log)


def lines_without_times(out: Path) -> Iterator[dict[str, Any]]:
    for line in (out / METRICS).read_text().splitlines():
        tree = json.loads(line)
        yield {key: value for key, value in tree.items() if "second" not in key}


def test_an_interrupted_fit_goes_on_to_what_an_uninterrupted_one_gives_bit_for_bit(
    tiny_moe: Path, pairs: Path, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = fit(job(tiny_moe, pairs, whole), Meter())
    for step in (1, 3, 4):  # before the first resume point, and twice with one
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(step, patch)
            with pytest.raises(Interrupted):
                fit(job(tiny_moe, pairs, broken, checkpoint_minutes=0), Meter())
    resumed = fit(job(tiny_moe, pairs, broken, checkpoint_minutes=0), Meter())
    assert torch.equal(resumed.shares_LPR, expected.shares_LPR)
    assert list(lines_without_times(broken)) == list(lines_without_times(whole))
    assert json.loads((broken / "summary.json").read_text()) == json.loads((whole / "summary.json").read_text())
    assert not (broken / "resume").exists()


def test_a_resume_point_holds_coefficients_and_no_weights(tiny_moe: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(3, patch)
        with pytest.raises(Interrupted):
            fit(job(tiny_moe, pairs, tmp_path / "out", checkpoint_minutes=0), Meter())
    (point,) = (tmp_path / "out" / "resume").glob("checkpoint-*")
    assert point.name == "checkpoint-2"
    held = load_file(point / "model.safetensors")
    assert list(held) == ["logits_LPR"]
    assert held["logits_LPR"].shape == (2, 1, 3)
