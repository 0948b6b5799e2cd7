from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from xft.checkpoint import SINGLE, Checkpoint
from xft.errors import CheckpointError
from xft.families import FAMILIES
from xft.merge.combine import Options, task_arithmetic
from xft.merge.fit import Merging
from xft.merge.methods import Coefficients
from xft.merge.write import Differences, write_merged
from xft.moe.mixture import Mixture
from xft.recipe import MergeConfig, UpcycleConfig
from xft.upcycle import upcycle

LAMBDA = 0.6
IDS = torch.arange(3, 43).reshape(2, 20)
SHARES = torch.randn(2, 3, generator=torch.Generator().manual_seed(6)).softmax(-1)

PLAIN = """
import json, sys

class NoXft:
    def find_spec(self, name, path=None, target=None):
        if name == "xft" or name.startswith("xft."):
            raise ImportError("xft is not installed here")

sys.meta_path.insert(0, NoXft())
try:
    import xft
except ImportError:
    pass
else:
    raise SystemExit("xft could be imported")

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder, out in json.loads(sys.argv[1]):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.arange(3, 43).reshape(2, 20)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    prompt = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        model.generate(**prompt, max_new_tokens=3, do_sample=False, pad_token_id=0)
        dtype = str(model.dtype)
        logits = model.float()(ids).logits
    save_file({"logits": logits}, out, metadata={"class": type(model).__name__, "dtype": dtype})
assert not any(name.split(".")[0] == "xft" for name in sys.modules)
"""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A merged checkpoint, and what plain transformers made of it where xft can't be imported."""

    mixture: Path
    folder: Path
    rounding: dict[str, float]
    logits: Tensor
    facts: dict[str, str]


@pytest.fixture(scope="module")
def merged(moe_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Merged]:
    """Every family, tied models and 16-bit bases, loaded in one process."""
    mixtures = {name: moe_of(name) for name in sorted(FAMILIES)}
    mixtures |= {f"tied {name}": moe_of(name, tie_word_embeddings=True) for name in ("llama", "qwen2")}
    mixtures |= {dtype: moe_of("llama", dtype) for dtype in ("bfloat16", "float16")}
    out = tmp_path_factory.mktemp("merged")
    rounding = {name: written(mixture, out / name) for name, mixture in mixtures.items()}
    work = json.dumps([(str(out / name), str(out / f"{name}.logits")) for name in mixtures])
    done = subprocess.run([sys.executable, "-I", "-c", PLAIN, work], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {}
    for name, mixture in mixtures.items():
        with safe_open(out / f"{name}.logits", framework="pt") as file:
            found[name] = Merged(
                mixture=mixture,
                folder=out / name,
                rounding=rounding[name],
                logits=file.get_tensor("logits"),
                facts=file.metadata(),
            )
    return found


def merging_with(mixture: Path, shares_LR: Tensor = SHARES) -> Merging:
    merging = Merging(Mixture(mixture), MergeConfig(shared_weight=LAMBDA))
    with torch.no_grad():
        merging.logits_LPR.copy_(shares_LR[:, None].log())
    merging.remix()
    return merging.eval()


def written(
    mixture: Path, out: Path, shares_LR: Tensor = SHARES, differences: Differences | None = None
) -> dict[str, float]:
    out.mkdir(exist_ok=True)
    coefficients = Coefficients(shares_LR[:, None], torch.full((2, 1), LAMBDA))
    return write_merged(Mixture(mixture), coefficients, out, differences)


@pytest.mark.parametrize("name", [*sorted(FAMILIES), "tied llama", "tied qwen2"])
def test_a_merged_checkpoint_loads_with_plain_transformers_and_has_the_mergings_logits(
    name: str, merged: dict[str, Merged]
) -> None:
    one = merged[name]
    assert one.facts == {"class": Checkpoint(one.mixture).family.model_class, "dtype": "torch.float32"}
    assert one.rounding == {"largest": 0.0, "mean": 0.0}
    tied = AutoConfig.from_pretrained(one.folder).tie_word_embeddings
    assert (Checkpoint(one.mixture).family.head in Checkpoint(one.folder)) == (not tied)
    assert tied or not name.startswith("tied")
    with torch.no_grad():
        torch.testing.assert_close(one.logits, merging_with(one.mixture)(input_ids=IDS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_16_bit_base_gets_its_dtype_back_and_differs_by_the_rounding_that_is_reported(
    dtype: str, merged: dict[str, Merged]
) -> None:
    mixture, rounding, logits = merged[dtype].mixture, merged[dtype].rounding, merged[dtype].logits
    assert merged[dtype].facts == {"class": "LlamaForCausalLM", "dtype": f"torch.{dtype}"}
    tensors = load_file(merged[dtype].folder / SINGLE)
    assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{dtype}"}
    merging = merging_with(mixture)
    names = dict(merging.dense.named_parameters())
    errors = []
    with torch.no_grad():
        for (layer, part), weight in merging.ffn_weights():
            stored = tensors[f"model.layers.{layer}.mlp.{part.tensor}"]
            torch.testing.assert_close(stored, weight.to(stored.dtype), rtol=2**-7, atol=0)
            errors.append((stored.float() - weight).abs().flatten())
            weight.copy_(stored)
        for name, tensor in tensors.items():
            if ".mlp." not in name:
                assert torch.equal(names[name], tensor.float()), name
        # with the FFNs rounded like the file's, and in nothing else, the logits are the file's
        torch.testing.assert_close(logits, merging(input_ids=IDS).logits, rtol=0, atol=1e-5)
    all_errors = torch.cat(errors)
    assert rounding["largest"] == pytest.approx(float(all_errors.max()), rel=1e-3)
    assert rounding["mean"] == pytest.approx(float(all_errors.mean()), rel=1e-3)
    assert 0 < rounding["mean"] < rounding["largest"] < 0.01


def test_weights_in_the_file_are_the_mixed_ones_bit_for_bit(tiny_moe: Path, tmp_path: Path) -> None:
    written(tiny_moe, tmp_path / "merged")
    tensors = load_file(tmp_path / "merged" / SINGLE)
    source = load_file(tiny_moe / SINGLE)
    dense = {name for name in source if ".mlp." not in name}
    ffn = {name for layer in range(2) for name in FAMILIES["llama"].ffn_tensors(layer)}
    assert set(tensors) == dense | ffn
    assert all(torch.equal(tensors[name], source[name]) for name in dense)
    for layer in range(2):
        for projection in ("gate_proj", "up_proj", "down_proj"):
            prefix = f"model.layers.{layer}.mlp"
            experts_R = source[f"{prefix}.experts.{projection}"]
            expected = LAMBDA * source[f"{prefix}.shared_expert.{projection}.weight"] + (1 - LAMBDA) * torch.einsum(
                "r,rij->ij", SHARES[layer], experts_R
            )
            torch.testing.assert_close(tensors[f"{prefix}.{projection}.weight"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_upcycling_and_merging_gives_the_base_back(dtype: str, dense_of: Callable[..., Path], tmp_path: Path) -> None:
    base = dense_of("qwen3", dtype)
    (tmp_path / "moe").mkdir()
    upcycle(base, tmp_path / "moe", UpcycleConfig(experts=4, active=3), seed=0)
    written(tmp_path / "moe", tmp_path / "merged")
    before, after = load_file(base / SINGLE), load_file(tmp_path / "merged" / SINGLE)
    assert set(after) == set(before)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        torch.testing.assert_close(after[name], tensor, rtol=6e-7, atol=0)


def test_a_merged_checkpoint_has_the_bases_config_tokenizer_and_generation_config(
    tiny_dense: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_dense, tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.25, "do_sample": True}))
    (base / "LICENSE").write_text("do as you like")
    (tmp_path / "moe").mkdir()
    upcycle(base, tmp_path / "moe", UpcycleConfig(experts=4, active=3), seed=0)
    written(tmp_path / "moe", tmp_path / "merged")
    merged = tmp_path / "merged"
    assert json.loads((merged / "config.json").read_text()) == json.loads((base / "config.json").read_text())
    names = {path.name for path in base.iterdir()}
    assert {path.name for path in merged.iterdir()} == names
    for name in names - {SINGLE, "config.json"}:
        assert (merged / name).read_bytes() == (base / name).read_bytes()
    assert AutoTokenizer.from_pretrained(merged).chat_template == AutoTokenizer.from_pretrained(base).chat_template


def test_a_mixture_tuned_in_fp32_is_written_in_the_bases_dtype(moe_of: Callable[..., Path], tmp_path: Path) -> None:
    mixture = shutil.copytree(moe_of("llama", "bfloat16"), tmp_path / "tuned")
    tensors = {name: tensor.float() for name, tensor in load_file(mixture / SINGLE).items()}
    tensors["model.norm.weight"] += 1e-4  # no longer a bf16 value
    save_file(tensors, mixture / SINGLE, metadata={"format": "pt"})
    config = json.loads((mixture / "config.json").read_text())
    (mixture / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    written(mixture, tmp_path / "merged")
    found = load_file(tmp_path / "merged" / SINGLE)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert torch.equal(found["model.norm.weight"], tensors["model.norm.weight"].bfloat16())
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


def changed(mixture: Path, out: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(mixture, out)
    tensors = load_file(out / SINGLE)
    change(tensors)
    save_file(tensors, out / SINGLE, metadata={"format": "pt"})
    return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("part", ["experts.up_proj", "shared_expert.up_proj.weight"])
def test_an_expert_that_is_not_finite_is_an_error_that_names_the_tensor(
    part: str, value: str, dtype: str, moe_of: Callable[..., Path], tmp_path: Path
) -> None:
    name = f"model.layers.1.mlp.{part}"
    mixture = changed(
        moe_of("llama", dtype), tmp_path / "moe", lambda tensors: tensors[name].view(-1)[5:6].fill_(float(value))
    )
    with pytest.raises(CheckpointError, match=rf"'{name}' holds NaN or infinity"):
        written(mixture, tmp_path / "merged")
    without = torch.zeros(2, SHARES.shape[1])  # nor is it hidden by a weight of 0
    with pytest.raises(CheckpointError, match=rf"'{name}' holds NaN or infinity"):
        written(mixture, tmp_path / "without", without)


def test_a_merged_weight_that_the_bases_dtype_can_not_hold_is_an_error(
    dense_of: Callable[..., Path], moe_of: Callable[..., Path], tmp_path: Path
) -> None:
    far = Differences(
        combine=task_arithmetic, base=Checkpoint(dense_of("llama", "float16")), options=Options(scale=1e9)
    )
    with pytest.raises(CheckpointError, match=r"'model.layers.0.mlp.\w+_proj.weight' holds NaN or infinity"):
        written(moe_of("llama", "float16"), tmp_path, differences=far)


@pytest.mark.parametrize("part", ["experts.up_proj", "shared_expert.up_proj.weight"])
def test_a_missing_expert_is_an_error_that_names_the_tensor(part: str, tiny_moe: Path, tmp_path: Path) -> None:
    name = f"model.layers.1.mlp.{part}"
    mixture = changed(tiny_moe, tmp_path / "moe", lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=rf"moe: no tensor '{name}'; not a whole mixture"):
        Mixture(mixture)


def test_a_dense_model_is_no_mixture(tiny_dense: Path) -> None:
    with pytest.raises(CheckpointError, match="not a mixture that xft made; give the output of `xft upcycle`"):
        Mixture(tiny_dense)
