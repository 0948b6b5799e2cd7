"""FAMILIES: what differs between model families, as data.

To add a family, register a `Family` here; the tests over `FAMILIES` then upcycle, prove, tune, merge and reload a tiny
random model of it: `pytest $(grep -rl --include='test_*.py' FAMILIES tests) -k NAME`. What such a model needs to be
telling, such as a scale that is 1 by default, goes into `SPECIAL` in tests/conftest.py; a scale of the logits into
`SCALINGS` in tune/loss.py.

A family has its layers in a list `TRUNK.layers`, each with its FFN in `mlp`, and `num_hidden_layers`, `hidden_size` and
`intermediate_size` in config.json. One that is built otherwise (GPT-J, Falcon) does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xft.errors import CheckpointError
from xft.registry import Registry

if TYPE_CHECKING:
    from xft.checkpoint import Checkpoint

MOE_PREFIX = "xft_"
DEQUANTISE = "dequantise the model first, or give one that isn't quantised"


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of an FFN, and the stack that holds it for all routed experts."""

    tensor: str
    """Name within the FFN module."""
    stack: str
    """Name within the mixture's experts."""
    place: int
    """Number of its projection."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Names of a dense family in transformers and in its checkpoints."""

    model_type: str
    """`model_type` in config.json."""
    config_class: str
    """Configuration class in transformers."""
    model_class: str
    """Causal-LM class in transformers."""
    module: str = ""
    """Package in `transformers.models`, where it is not called like the type."""
    trunk: str = "model"
    """Name of the module below the output matrix."""
    inner: tuple[str, ...] = ("gate_proj", "up_proj")
    """The FFN's matrices from D to F: gate and up, or the only one."""
    down: str = "down_proj"
    """Its matrix from F to D."""
    fused: bool = False
    """The only inner matrix is gate and up, one above the other."""
    activation: str = "act_fn"
    """Name of the activation in the FFN module."""
    embedding: str = "model.embed_tokens.weight"
    head: str = "lm_head.weight"
    """Output matrix; absent from checkpoints that tie it to the embedding."""

    @property
    def projections(self) -> tuple[str, ...]:
        """Return the FFN's matrices, the one from F to D last."""
        return *self.inner, self.down

    @property
    def parts(self) -> tuple[Part, ...]:
        """Return what an FFN can consist of: its matrices, and for each one a bias that a checkpoint may have."""
        weights = [Part(f"{name}.weight", name, place) for place, name in enumerate(self.projections)]
        return *weights, *(Part(f"{part.stack}.bias", f"{part.stack}_bias", part.place) for part in weights)

    def of_channels(self, part: Part) -> bool:
        """Tell whether a tensor's entries belong to the FFN's channels; the last matrix's bias alone does not."""
        return part.place < len(self.inner) or part.tensor.endswith(".weight")

    def shape(self, part: Part, config: Mapping[str, Any], channels: int | None = None) -> tuple[int, ...]:
        """Return a tensor's shape in an FFN of so many channels, those of config.json by default."""
        hidden, ffn = int(config["hidden_size"]), channels or int(config["intermediate_size"])
        inner = part.place < len(self.inner)
        rows = ffn * (1 + self.fused) if inner else hidden
        return (rows, hidden if inner else ffn) if part.tensor.endswith(".weight") else (rows,)

    def ffn(self, layer: int) -> str:
        """Return the name of a layer's FFN module."""
        return f"{self.trunk}.layers.{layer}.mlp"

    def ffn_tensors(self, layer: int) -> list[str]:
        """Return the names of a layer's FFN weights in a dense checkpoint, without biases."""
        return [f"{self.ffn(layer)}.{projection}.weight" for projection in self.projections]

    def wrong(self, field: str, why: str) -> CheckpointError:
        """Return the error that a field of this entry is wrong, or what it was held against is."""
        return CheckpointError(
            f"{why}; its family's entry {self.model_type!r} in src/xft/families.py has {field}={getattr(self, field)!r}"
        )

    @property
    def modeling(self) -> str:
        """Return the name of the module of transformers that has the model class."""
        module = self.module or self.model_type
        return f"transformers.models.{module}.modeling_{module}"

    @property
    def moe_type(self) -> str:
        """Return the `model_type` of this family's mixtures."""
        return MOE_PREFIX + self.model_type

    @property
    def moe_class(self) -> str:
        """Return the class name of this family's mixtures."""
        return f"Xft{self.model_class}"


FAMILIES: Registry[Family] = Registry("model family")
for _family in (
    Family(model_type="llama", config_class="LlamaConfig", model_class="LlamaForCausalLM"),
    Family(model_type="mistral", config_class="MistralConfig", model_class="MistralForCausalLM"),
    Family(model_type="qwen2", config_class="Qwen2Config", model_class="Qwen2ForCausalLM"),
    Family(model_type="qwen3", config_class="Qwen3Config", model_class="Qwen3ForCausalLM"),
    Family(model_type="smollm3", config_class="SmolLM3Config", model_class="SmolLM3ForCausalLM"),
    Family(model_type="olmo2", config_class="Olmo2Config", model_class="Olmo2ForCausalLM"),
    Family(model_type="granite", config_class="GraniteConfig", model_class="GraniteForCausalLM"),
    Family(model_type="gemma2", config_class="Gemma2Config", model_class="Gemma2ForCausalLM"),
    Family(model_type="gemma3_text", config_class="Gemma3TextConfig", model_class="Gemma3ForCausalLM", module="gemma3"),
    Family(
        model_type="phi3", config_class="Phi3Config", model_class="Phi3ForCausalLM",
        inner=("gate_up_proj",), fused=True, activation="activation_fn",
    ),
    Family(
        model_type="starcoder2", config_class="Starcoder2Config", model_class="Starcoder2ForCausalLM",
        inner=("c_fc",), down="c_proj", activation="act",
    ),
    Family(
        model_type="gpt_neox", config_class="GPTNeoXConfig", model_class="GPTNeoXForCausalLM", trunk="gpt_neox",
        inner=("dense_h_to_4h",), down="dense_4h_to_h", activation="act",
        embedding="gpt_neox.embed_in.weight", head="embed_out.weight",
    ),
):  # fmt: skip
    FAMILIES.register(_family.model_type)(_family)


def family_of(model_type: str, where: str, names: Sequence[str] = ()) -> Family:
    """Return the family of a dense or mixture `model_type`; `where` names the checkpoint, `names` its tensors.

    Raises:
        CheckpointError: no entry; the message says what an entry needs.
    """
    dense = model_type.removeprefix(MOE_PREFIX)
    if dense not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        looked_for = ", ".join(FAMILIES["llama"].ffn_tensors(0))
        first = [name for name in names if ".0." in name and name.endswith(".weight") and "mlp" in name]
        has = f"; it has {', '.join(first)}" if first else ""
        raise CheckpointError(
            f"{where}: unknown model family {dense!r} (known: {known}); an entry in src/xft/families.py names its "
            f"classes and FFN tensors, such as Llama's {looked_for}{has}; CONTRIBUTING.md says how to add one"
        )
    return FAMILIES[dense]


def check_entry(family: Family, source: Checkpoint) -> None:
    """Hold a dense checkpoint against its family's entry: sizes, names and shapes, of the first layer's FFN only.

    Raises:
        CheckpointError: it is quantised, or has not what the entry says; then it names the entry's field, since either
            may be wrong.
    """
    folder, names = source.folder, source.names()
    source.refuse_quantised()
    for key in ("hidden_size", "intermediate_size", "vocab_size"):
        if not isinstance(source.config.get(key), int):
            raise CheckpointError(f"{folder / 'config.json'}: no {key}, which src/xft/families.py expects of a family")
    if not any(name.startswith(f"{family.trunk}.layers.0.") for name in names):
        raise family.wrong("trunk", f"{folder}: no tensor begins with {f'{family.trunk}.layers.0.'!r}")
    ffn = f"{family.ffn(0)}."
    has = (
        f"{ffn.rstrip('.')} has {', '.join(name.removeprefix(ffn) for name in names if name.startswith(ffn)) or 'none'}"
    )
    for part in family.parts[: len(family.projections)]:
        field = "inner" if part.place < len(family.inner) else "down"
        name = ffn + part.tensor
        if name not in source:
            raise family.wrong(field, f"{folder}: no tensor {name!r}, which a {family.model_type} model has ({has})")
        if not source.dtype(name).is_floating_point:
            raise CheckpointError(f"{folder}: tensor {name!r} holds {source.dtype(name)}; {DEQUANTISE}")
        shape, expected = source.shape(name), family.shape(part, source.config)
        if shape != expected:
            field = "fused" if field == "inner" and shape[1:] == expected[1:] else field
            raise family.wrong(field, f"{folder}: tensor {name!r} has the shape {shape}, not {expected}")
    if family.embedding not in source:
        raise family.wrong("embedding", f"{folder}: no tensor {family.embedding!r}")
    beside = [name for name in names if not name.startswith(f"{family.trunk}.")]
    if beside and family.head not in source:
        raise family.wrong("head", f"{folder}: no tensor {family.head!r}, but {', '.join(beside)} beside the layers")
