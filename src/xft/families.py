"""FAMILIES: what differs between model families, as data.

To add a family, register a `Family` here; the tests over `FAMILIES` then upcycle, prove, merge and reload a tiny
random model of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from xft.errors import CheckpointError
from xft.registry import Registry

MOE_PREFIX = "xft_"


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
    ffn: str = "model.layers.{layer}.mlp"
    """Name of a layer's FFN module."""
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    embedding: str = "model.embed_tokens.weight"
    head: str = "lm_head.weight"
    """Output matrix; absent from checkpoints that tie it to the embedding."""

    @property
    def projections(self) -> tuple[str, str, str]:
        """Return the FFN's three matrices; gate and up map D to F, down maps F to D."""
        return self.gate, self.up, self.down

    def ffn_tensors(self, layer: int) -> list[str]:
        """Return the names of a layer's FFN weights in a dense checkpoint."""
        return [f"{self.ffn.format(layer=layer)}.{projection}.weight" for projection in self.projections]

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
):
    FAMILIES.register(_family.model_type)(_family)


def family_of(model_type: str, where: str) -> Family:
    """Return the family of a dense or mixture `model_type`; `where` names the checkpoint in the message.

    Raises:
        CheckpointError: no entry; the message says what an entry needs.
    """
    dense = model_type.removeprefix(MOE_PREFIX)
    if dense not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        looked_for = ", ".join(FAMILIES["llama"].ffn_tensors(0))
        raise CheckpointError(
            f"{where}: unknown model family {dense!r} (known: {known}); an entry in xft/families.py names its classes "
            f"and FFN tensors, such as {looked_for}"
        )
    return FAMILIES[dense]
