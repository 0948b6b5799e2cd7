"""Every router's mixture, from the dense base and back: what its checkpoint holds, its proof, its merge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from xft.checkpoint import Checkpoint
from xft.errors import CheckpointError
from xft.families import FAMILIES
from xft.merge.methods import equal_coefficients
from xft.merge.write import write_merged
from xft.moe.mixture import Mixture, is_mixture
from xft.moe.routers import ROUTERS
from xft.prove import hidden_states, prove
from xft.recipe import UpcycleConfig
from xft.tune.tune import save_tuned
from xft.upcycle import upcycle

IDS = torch.arange(3, 43).reshape(2, 20)


@pytest.fixture(params=sorted(ROUTERS))
def mixture(request: pytest.FixtureRequest, tiny_dense: Path, tmp_path: Path) -> Mixture:
    folder = tmp_path / "moe"
    folder.mkdir()
    upcycle(tiny_dense, folder, UpcycleConfig(experts=4, active=3, router=request.param, gate_noise=False), seed=1)
    return Mixture(folder)


def test_a_mixture_has_a_shared_expert_only_where_its_router_has_one(mixture: Mixture) -> None:
    assert is_mixture(mixture)
    assert any(".shared_expert." in name for name in mixture.names()) == mixture.layout.rule.shared
    assert len(mixture.pieces(1, mixture.parts[-1])[0].experts) == 4
    assert mixture.routed == (3 if mixture.layout.rule.shared else 4)
    model = AutoModelForCausalLM.from_pretrained(mixture.folder)
    layer = model.model.layers[0].mlp
    assert (layer.shared_expert is not None) == mixture.layout.rule.shared
    assert layer.router.keep == (2 if mixture.layout.rule.shared else 3)


def test_the_proof_demands_equality_where_the_router_promises_it_and_measures_elsewhere(
    mixture: Mixture, tiny_dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[bool] = []

    def counted(*arguments: Any, **options: Any) -> torch.Tensor:
        passes.append(options.get("tamper") is not None)
        return hidden_states(*arguments, **options)

    monkeypatch.setattr("xft.prove.hidden_states", counted)
    proof = prove(tiny_dense, mixture.folder)
    assert proof.preserves_dense == mixture.layout.rule.preserves_dense
    # A damaged expert is made, and must be noticed, only where something is demanded
    assert passes == [False, False, False, *([True] if proof.preserves_dense else [])]
    assert (proof.negative_control_difference is not None) == proof.preserves_dense
    if proof.preserves_dense:
        assert proof.max_difference <= proof.tolerance
    else:
        assert proof.max_difference > 100 * proof.tolerance
        assert proof.divergence == pytest.approx(mean_divergence(tiny_dense, mixture.folder), rel=0.5)
        assert f"predictions diverge by {proof.divergence:.3f} nats a token" in str(proof)


def mean_divergence(dense: Path, mixture: Path) -> float:
    """The same from whole models, on other tokens."""
    ids = torch.randint(260, (8, 48), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        ours, theirs = (AutoModelForCausalLM.from_pretrained(folder)(ids).logits for folder in (dense, mixture))
    return float((ours.softmax(-1) * (ours.log_softmax(-1) - theirs.log_softmax(-1))).sum(-1).mean())


def test_merging_the_fresh_mixture_gives_the_base_back(mixture: Mixture, tiny_dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    out.mkdir()
    shared_weight = 0.75 if mixture.layout.rule.shared else None
    write_merged(mixture, equal_coefficients(mixture.layers, mixture.routed, shared_weight), out)
    base, merged = (load_file(folder / "model.safetensors") for folder in (tiny_dense, out))
    assert base.keys() == merged.keys()
    for name, tensor in base.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=0)


def test_a_tuned_mixture_is_written_whole(mixture: Mixture, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(mixture.folder)
    out = tmp_path / "tuned"
    out.mkdir()
    save_tuned(model, mixture, out)
    assert sorted(Mixture(out).names()) == sorted(mixture.names())
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(out)(IDS).logits
        assert torch.equal(again, model(IDS).logits)


def test_what_is_no_mixture_is_refused(tiny_dense: Path) -> None:
    assert not is_mixture(Checkpoint(tiny_dense))
    with pytest.raises(CheckpointError, match="not a mixture that xft made"):
        Mixture(tiny_dense)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_familys_tuned_models_are_written_whole(
    model_type: str, dense_of: Callable[..., Path], moe_of: Callable[..., Path], tmp_path: Path
) -> None:
    for kind, folder in (("dense", dense_of(model_type)), ("mixture", moe_of(model_type))):
        out = tmp_path / kind
        out.mkdir()
        source, model = Checkpoint(folder), AutoModelForCausalLM.from_pretrained(folder)
        save_tuned(model, source, out)
        assert sorted(Checkpoint(out).names()) == sorted(source.names())
        with torch.no_grad():
            again = AutoModelForCausalLM.from_pretrained(out)(IDS).logits
            torch.testing.assert_close(again, model(IDS).logits, rtol=0, atol=1e-5)  # memory may be aligned otherwise
