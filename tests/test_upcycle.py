from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from xft.checkpoint import INDEX, Checkpoint, Planned, copy_of, write_checkpoint, write_config
from xft.errors import CheckpointError, RecipeError
from xft.families import FAMILIES
from xft.merge.methods import equal_coefficients
from xft.merge.soup import soup
from xft.merge.write import write_merged
from xft.moe.mixture import Mixture
from xft.moe.routers import ROUTERS
from xft.prove import prove
from xft.recipe import UpcycleConfig
from xft.upcycle import upcycle

IDS = torch.randint(0, 260, (3, 40), generator=torch.Generator().manual_seed(0))
FAITHFUL = [name for name, rule in ROUTERS.items() if rule.preserves_dense]


def logits(folder: Path, dtype: torch.dtype = torch.float32) -> Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        result: Tensor = model(IDS).logits
    return result


def rounding(folder: Path) -> float:
    """The dense model's own fp32-against-fp64 difference."""
    return float((logits(folder).double() - logits(folder, torch.float64)).abs().max())


def upcycled(base: Path, out: Path, seed: int = 0, **options: Any) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    upcycle(base, out, UpcycleConfig(**{"experts": 4, "active": 3, **options}), seed)
    return out


@pytest.mark.sampled
@pytest.mark.parametrize("active", [2, 3, 4, 5])
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_an_upcycled_model_equals_its_dense_parent_for_any_number_of_active_experts(
    model_type: str, active: int, dense_of: Callable[..., Path], tmp_path: Path
) -> None:
    base = dense_of(model_type)
    mixture = upcycled(base, tmp_path, experts=5, active=active)
    difference = float((logits(mixture) - logits(base)).abs().max())
    assert difference <= 5 * rounding(base) < 1e-4
    assert float(logits(base).std()) > 0.1  # against logits of this size


@pytest.mark.sampled
@pytest.mark.parametrize("gate", ["mlp", "linear"])
@pytest.mark.parametrize("router", FAITHFUL)
def test_the_equality_holds_for_every_rule_that_promises_it_and_every_gate(
    router: str, gate: str, tiny_dense: Path, tmp_path: Path
) -> None:
    mixture = upcycled(tiny_dense, tmp_path, router=router, gate=gate)
    assert float((logits(mixture) - logits(tiny_dense)).abs().max()) <= 5 * rounding(tiny_dense)


@pytest.fixture
def tuned(dense_of: Callable[..., Path], tmp_path: Path) -> Callable[[Path, int], Path]:
    """Give a model of the base's shape with other weights, as tuning leaves it: in fp32."""

    def model(base: Path, number: int) -> Path:
        folder = shutil.copytree(base, tmp_path / f"tuned-{number}")
        noise = torch.Generator().manual_seed(number)
        tensors = {
            name: tensor.float() + 0.02 * torch.randn(tensor.shape, generator=noise)
            for name, tensor in load_file(folder / "model.safetensors").items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return model


@pytest.mark.sampled
@pytest.mark.parametrize("model_type", ["llama", "phi3", "starcoder2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_routed_experts_can_come_from_other_models_in_turn(
    model_type: str, dtype: str, dense_of: Callable[..., Path], tuned: Callable[..., Path], tmp_path: Path
) -> None:
    base = dense_of(model_type, dtype)
    origins = [tuned(base, number) for number in range(2)]
    out = tmp_path / "moe"
    out.mkdir()
    config = UpcycleConfig(experts=4, active=3, experts_from=[str(origin) for origin in origins])
    upcycle(base, out, config, 0, origins=origins)
    mixture, dense = Checkpoint(out), Checkpoint(base)
    tensors = [load_file(origin / "model.safetensors") for origin in origins]
    family = dense.family
    for layer in range(dense.layers):
        for part in family.parts:
            ffn = family.ffn(layer)
            if f"{ffn}.{part.tensor}" not in dense:
                continue
            stack = mixture.read(f"{ffn}.experts.{part.stack}")
            assert stack.dtype == dense.dtype(f"{ffn}.{part.tensor}")
            for number, expert in enumerate(stack):
                torch.testing.assert_close(
                    expert, tensors[number % 2][f"{ffn}.{part.tensor}"].to(stack.dtype), rtol=0, atol=0
                )
            shared = mixture.read(f"{ffn}.shared_expert.{part.tensor}")
            assert torch.equal(shared, dense.read(f"{ffn}.{part.tensor}"))
    assert torch.equal(mixture.read(family.embedding), dense.read(family.embedding))
    proof = prove(base, out)
    assert not proof.preserves_dense
    assert proof.max_difference > proof.tolerance


def test_a_soup_and_its_members_make_a_mixture_whose_uniform_merge_is_the_soup(
    tiny_dense: Path, tuned: Callable[..., Path], tmp_path: Path
) -> None:
    origins = [tuned(tiny_dense, number) for number in range(3)]
    averaged, moe, merged = (tmp_path / name for name in ("soup", "moe", "merged"))
    for folder in (averaged, moe, merged):
        folder.mkdir()
    soup(origins, None, averaged)
    upcycle(averaged, moe, UpcycleConfig(experts=7, active=3, experts_from="soup"), 0, origins=origins)
    mixture = Mixture(moe)
    write_merged(mixture, equal_coefficients(len(mixture.mixed_layers), mixture.routed, 0.75), merged)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (merged, averaged))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6)


def test_models_that_can_give_no_experts_are_refused(
    tiny_dense: Path, tiny_moe: Path, dense_of: Callable[..., Path], tmp_path: Path
) -> None:
    quantised, coded = (Path(shutil.copytree(tiny_dense, tmp_path / name)) for name in ("quantised", "coded"))
    config = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    tensors = load_file(coded / "model.safetensors")
    save_file(
        {name: tensor.to(torch.int8) if ".mlp." in name else tensor for name, tensor in tensors.items()},
        coded / "model.safetensors",
    )
    refused = [
        (tiny_moe, "is a mixture; .*: merge it first"),
        (dense_of("llama", intermediate_size=40), r"gate_proj.weight is .*, the base has \(.*tuned from"),
        (
            dense_of("llama", num_hidden_layers=3),
            "its num_hidden_layers is 3, the base's 2; experts are made of models",
        ),
        (dense_of("mistral"), "its model_type is mistral, the base's llama"),
        (quantised, "has a quantization_config; dequantise the model first"),
        (coded, r"tensor 'model.layers.0.mlp.\w+.weight' holds torch.int8; dequantise"),
    ]
    for origin, message in refused:
        config = UpcycleConfig(experts=4, active=3, experts_from=["x"])
        with pytest.raises(CheckpointError, match=message):
            upcycle(tiny_dense, tmp_path, config, 0, origins=[origin])
    with pytest.raises(RecipeError, match="4 models for 3 routed experts"):
        upcycle(tiny_dense, tmp_path, UpcycleConfig(experts=4, active=3), 0, origins=[tiny_dense] * 4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_16_bit_base_gives_a_mixture_of_the_same_dtype_and_logits(
    dtype: str, dense_of: Callable[..., Path], tmp_path: Path
) -> None:
    base = dense_of("llama", dtype)
    mixture = upcycled(base, tmp_path)
    checkpoint = Checkpoint(mixture)
    assert {str(checkpoint.dtype(name)) for name in checkpoint.names()} == {f"torch.{dtype}"}
    assert checkpoint.config["xft"]["base_dtype"] == dtype
    assert AutoModelForCausalLM.from_pretrained(mixture).dtype == getattr(torch, dtype)
    assert float((logits(mixture) - logits(base)).abs().max()) <= 5 * rounding(base)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_expert_is_the_bases_ffn_bit_for_bit_and_all_else_is_unchanged(
    model_type: str, dense_of: Callable[..., Path], tmp_path: Path
) -> None:
    base = dense_of(model_type)
    dense, mixed = load_file(base / "model.safetensors"), load_file(upcycled(base, tmp_path) / "model.safetensors")
    family = FAMILIES[model_type]
    ffns = [family.ffn(layer) for layer in range(2)]
    for name in [name for name in dense if name.startswith(tuple(ffns))]:
        ffn, tensor = name.split(".mlp.")[0] + ".mlp", name.split(".mlp.")[1]
        original = dense.pop(name)
        assert torch.equal(mixed.pop(f"{ffn}.shared_expert.{tensor}"), original)
        stack = mixed.pop(f"{ffn}.experts.{tensor.removesuffix('.weight').replace('.bias', '_bias')}")
        assert stack.shape[0] == 3
        assert all(torch.equal(expert, original) for expert in stack)
    routers = {name for name in mixed if ".mlp.router." in name}
    assert routers == {f"{ffn}.router.{part}.weight" for ffn in ffns for part in ("hidden", "scores", "noise")}
    assert set(mixed) - routers == set(dense)
    assert all(torch.equal(mixed[name], tensor) for name, tensor in dense.items())


def test_fresh_routers_differ_by_layer_are_small_and_start_without_learned_noise(
    tiny_dense: Path, tmp_path: Path
) -> None:
    tensors = load_file(upcycled(tiny_dense, tmp_path) / "model.safetensors")
    first, second = (tensors[f"model.layers.{layer}.mlp.router.hidden.weight"] for layer in range(2))
    assert not torch.equal(first, second)
    assert 0 < first.abs().max() <= 1 / math.sqrt(32)
    assert tensors["model.layers.0.mlp.router.noise.weight"].abs().max() == 0


def test_the_seed_alone_decides_the_routers(tiny_dense: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    one = (upcycled(tiny_dense, tmp_path / "one", seed=5) / "model.safetensors").read_bytes()
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    two = (upcycled(tiny_dense, tmp_path / "two", seed=5) / "model.safetensors").read_bytes()
    assert torch.equal(torch.random.get_rng_state(), before)  # the caller's generator is left alone
    other = (upcycled(tiny_dense, tmp_path / "other", seed=6) / "model.safetensors").read_bytes()
    assert one == two
    assert one != other


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_tied_embeddings_stay_tied_and_are_stored_once(
    model_type: str, dense_of: Callable[..., Path], tmp_path: Path
) -> None:
    base = dense_of(model_type, tie_word_embeddings=True)
    assert "lm_head.weight" not in Checkpoint(base)
    mixture = upcycled(base, tmp_path)
    assert "lm_head.weight" not in Checkpoint(mixture)
    model: Any = AutoModelForCausalLM.from_pretrained(mixture)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert float((logits(mixture) - logits(base)).abs().max()) <= 5 * rounding(base)


def test_tokenizer_chat_template_generation_config_and_licence_come_along(tiny_dense: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_dense, tmp_path / "base")
    (base / "LICENSE").write_text("do as you like")
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.25, "do_sample": True}))
    mixture = upcycled(base, tmp_path / "moe")
    old, new = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(mixture)
    turn = [{"role": "user", "content": "def f(): é"}]
    for render in (lambda t: t.encode("def f(): é"), lambda t: t.apply_chat_template(turn, tokenize=False)):
        assert render(new) == render(old)
    assert new.chat_template == old.chat_template
    assert (mixture / "LICENSE").read_text() == "do as you like"
    assert AutoModelForCausalLM.from_pretrained(mixture).generation_config.temperature == 0.25
    config = json.loads((mixture / "config.json").read_text())
    changed = {"model_type", "architectures", "xft"}
    original = json.loads((base / "config.json").read_text())
    assert {key: value for key, value in config.items() if key not in changed} == {
        key: value for key, value in original.items() if key not in changed
    }


def in_shards(base: Path, out: Path) -> Path:
    """Copy a checkpoint into many small shards."""
    shutil.copytree(base, out, ignore=shutil.ignore_patterns("*.safetensors"))
    source = Checkpoint(base)
    write_checkpoint(out, [copy_of(source, name) for name in source.names()], shard_bytes=20_000)
    assert len(list(out.glob("model-*.safetensors"))) > 3
    return out


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_sharded_base_gives_the_mixture_of_the_single_file(
    model_type: str, dense_of: Callable[..., Path], tmp_path: Path
) -> None:
    base = dense_of(model_type)
    sharded = in_shards(base, tmp_path / "sharded")
    assert torch.equal(logits(sharded), logits(base))  # transformers reads our shards and index
    one, two = upcycled(base, tmp_path / "one"), upcycled(sharded, tmp_path / "two")
    expected, found = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_sharded_mixture_loads_with_transformers(tiny_moe: Path, tmp_path: Path) -> None:
    sharded = in_shards(tiny_moe, tmp_path / "sharded")
    assert (sharded / INDEX).is_file()
    assert torch.equal(logits(sharded), logits(tiny_moe))


def changed(base: Path, out: Path, change: Callable[[dict[str, Tensor]], object], **config: Any) -> Path:
    """Copy a checkpoint with other tensors or config."""
    shutil.copytree(base, out)
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    tree = json.loads((out / "config.json").read_text()) | config
    (out / "config.json").write_text(json.dumps(tree))
    return out


@pytest.mark.sampled
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_an_error_that_names_the_tensor(
    name: str, value: float, tiny_dense: Path, tmp_path: Path
) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[name][3, 5] = value

    base = changed(tiny_dense, tmp_path / "base", spoil)
    with pytest.raises(CheckpointError, match=f"'{name}' holds NaN or infinity"):
        upcycled(base, tmp_path / "moe")


def test_a_missing_ffn_tensor_is_an_error_that_names_it(tiny_dense: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    base = changed(tiny_dense, tmp_path / "base", lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=rf"base: no tensor '{name}', which a llama model has"):
        upcycled(base, tmp_path / "moe")


def test_an_unknown_family_is_an_error_that_names_the_folder(tiny_dense: Path, tmp_path: Path) -> None:
    base = changed(tiny_dense, tmp_path / "base", lambda tensors: None, model_type="gpt2")
    with pytest.raises(CheckpointError, match=r"base: unknown model family 'gpt2' \(known: .*llama, "):
        upcycled(base, tmp_path / "moe")


def test_a_mixture_is_no_base(tiny_moe: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a mixture already; give its dense base"):
        upcycled(tiny_moe, tmp_path)


def test_a_gated_ffn_with_biases_is_upcycled_with_them(dense_of: Callable[..., Path], tmp_path: Path) -> None:
    base = dense_of("llama", mlp_bias=True)
    mixture = upcycled(base, tmp_path)
    assert float((logits(mixture) - logits(base)).abs().max()) <= 5 * rounding(base)
    stack = load_file(mixture / "model.safetensors")["model.layers.0.mlp.experts.gate_proj_bias"]
    assert stack.shape == (3, 48)
    assert stack.abs().min() > 0


PEAK = """
import sys, threading, time
from pathlib import Path
import xft.prove, xft.upcycle
from xft.recipe import UpcycleConfig

def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024

def sample():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)

base, out = map(Path, sys.argv[1:])
out.mkdir()
start = anonymous()
for work in (
    lambda: xft.upcycle.upcycle(base, out, UpcycleConfig(experts=8, active=6), 0),
    lambda: xft.prove.prove(base, out),
):
    peak, done = 0, False
    thread = threading.Thread(target=sample)
    thread.start()
    work()
    done = True
    thread.join()
    print("peak", peak - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_upcycling_and_proof_hold_no_more_than_one_layers_experts(tmp_path: Path) -> None:
    hidden, ffn, layers = 1024, 3584, 4
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=8, vocab_size=512,
        num_key_value_heads=8, tie_word_embeddings=True,
    )  # fmt: skip
    shapes = {"model.embed_tokens.weight": (512, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
        shapes |= {f"{prefix}mlp.{part}_proj.weight": (ffn, hidden) for part in ("gate", "up")}
        shapes |= {f"{prefix}mlp.down_proj.weight": (hidden, ffn)}
        shapes |= {f"{prefix}{part}_layernorm.weight": (hidden,) for part in ("input", "post_attention")}
    base = tmp_path / "base"
    base.mkdir()
    write_config(base, config.to_dict() | {"architectures": ["LlamaForCausalLM"]})
    torch.manual_seed(0)
    write_checkpoint(
        base,
        [
            Planned(name=name, shape=shape, dtype=torch.float32, make=lambda shape=shape: [torch.randn(shape) * 0.03])
            for name, shape in shapes.items()
        ],
    )
    out = tmp_path / "moe"
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(base), str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    upcycling, proof = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak"))
    experts_of_a_layer = 8 * 3 * hidden * ffn * 4
    assert sum(path.stat().st_size for path in out.glob("*.safetensors")) > 1.4e9
    assert upcycling < experts_of_a_layer + 200e6
    assert proof < experts_of_a_layer + 200e6


def test_a_deepseek_coder_with_linear_rope_is_a_llama(dense_of: Callable[..., Path], tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 100000.0}
    base = dense_of("llama", rope_parameters=rope)
    mixture = upcycled(base, tmp_path)
    assert json.loads((mixture / "config.json").read_text())["rope_parameters"] == rope
    assert float((logits(mixture) - logits(base)).abs().max()) <= 5 * rounding(base)
    assert float((logits(base) - logits(dense_of("llama"))).abs().max()) > 0.1  # the scaling matters here
