from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from xft.checkpoint import Checkpoint
from xft.families import FAMILIES
from xft.moe.layer import MoELayer
from xft.moe.mixture import fingerprint
from xft.recipe import UpcycleConfig
from xft.upcycle import upcycle

ROUND_TRIP = """
{imports}
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM
source, out = map(Path, sys.argv[1:])
model = AutoModelForCausalLM.from_pretrained(source)
ids = torch.arange(3, 23)[None]
with torch.no_grad():
    logits = model(ids).logits
    tokens = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
assert tokens.shape == (1, 25), tokens.shape
assert tokens[0, 20] == logits[0, -1].argmax(), "generation and forward pass disagree"
model.save_pretrained(out)
again = AutoModelForCausalLM.from_pretrained(out)
assert type(again) is type(model)
with torch.no_grad():
    assert torch.equal(again(ids).logits, logits), "logits differ after saving and loading"
print("class", type(model).__name__)
"""


def python(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "imports",
    [
        "import xft.families, transformers.models.llama.modeling_llama, xft.moe.model",
        *(  # each starts a Python of its own, which takes 7 seconds
            pytest.param(imports, marks=pytest.mark.slow)
            for imports in (
                "import xft, transformers",
                "import transformers.models.auto.modeling_auto, xft",
                "import xft.upcycle",
                "import xft, transformers.models.llama.modeling_llama",
                "import xft, transformers.models.qwen3.modeling_qwen3, transformers.models.llama.modeling_llama",
            )
        ),
    ],
)
def test_after_import_xft_a_mixture_loads_generates_saves_and_loads_again(
    imports: str, moe_of: Callable[..., Path], tmp_path: Path
) -> None:
    printed = python(ROUND_TRIP.format(imports=imports), moe_of(), tmp_path / "again")
    assert "class XftLlamaForCausalLM" in printed
    assert json.loads((tmp_path / "again" / "config.json").read_text())["model_type"] == "xft_llama"


def test_import_xft_alone_imports_neither_torch_nor_transformers() -> None:
    printed = python("import sys, xft; print(sorted({'torch', 'transformers', 'accelerate'} & set(sys.modules)))")
    assert printed.strip() == "[]"


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_familys_mixture_keeps_its_values_when_saved_and_loaded(
    model_type: str, moe_of: Callable[..., Path], tmp_path: Path
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(moe_of(model_type))
    model.save_pretrained(tmp_path)
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.config.xft == model.config.xft
    assert [type(layer.mlp) for layer in again.base_model.layers] == [MoELayer] * 2


def test_config_counts_experts_and_active_with_the_shared_one(tiny_dense: Path, tmp_path: Path) -> None:
    upcycle(tiny_dense, tmp_path, UpcycleConfig(experts=5, active=3, gate="linear", gate_noise=False), seed=0)
    config: Any = AutoConfig.from_pretrained(tmp_path)
    assert config.xft == {
        "experts": 5, "active": 3, "router": "shared-normalized", "gate": "linear", "gate_noise": False,
        "redraw": 0.0, "noise": 0.0, "layout": "copy", "rank": 16, "experts_from": [],
        "parts": 1, "shared": 1, "dense_layers": 0, "base": "dense", "base_dtype": "float32",
        "base_fingerprint": fingerprint(Checkpoint(tiny_dense)),
    }  # fmt: skip
    layer = AutoModelForCausalLM.from_pretrained(tmp_path).model.layers[0].mlp
    assert layer.experts.routed == len(layer.experts.gate_proj) == 4  # and the shared one
    assert layer.router(torch.randn(2, config.hidden_size)).routing.ids_TK.shape == (2, 2)


def test_a_mixture_made_from_its_config_is_initialised(moe_of: Callable[..., Path]) -> None:
    config: Any = AutoConfig.from_pretrained(moe_of())
    model: Any = AutoModelForCausalLM.from_config(config)
    for layer in model.requires_grad_(False).model.layers:
        assert float(layer.mlp.experts.up_proj.std()) == pytest.approx(config.initializer_range, rel=0.1)
        assert float(layer.mlp.router.hidden.weight.abs().max()) <= config.hidden_size**-0.5
        assert float(layer.mlp.router.hidden.weight.abs().max()) > 0.5 * config.hidden_size**-0.5
        assert float(layer.mlp.router.noise.weight.abs().max()) == 0
