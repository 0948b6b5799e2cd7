"""Write a mixture's experts as LoRA adapters of its base, which PEFT loads (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from xft.base import EMBEDDED
from xft.cards import hub_model, write_adapters_card
from xft.errors import CheckpointError
from xft.moe.mixture import Mixture, fingerprint
from xft.progress import track
from xft.stage import write_json


def export_adapters(mixture: Mixture, out: Path) -> None:
    """Write `expert-N/` for each routed expert: adapter_config.json and adapter_model.safetensors.

    Raises:
        CheckpointError: its experts are no low-rank differences, or differ from an FFN that was trained with them.
    """
    if mixture.layout.copies:
        raise CheckpointError(f"{mixture.folder}: its experts are full matrices; adapters are those of layout=adapter")
    if mixture.options.get("base_fingerprint") != fingerprint(mixture):
        raise CheckpointError(
            f"{mixture.folder}: its FFNs were trained too, so its experts are adapters of no model that there is; "
            "tune with --set train=experts, which leaves the base as it is, or merge it"
        )
    family, layers = mixture.family, mixture.mixed_layers
    names = [part.tensor.removesuffix(".weight") for part in mixture.parts if part.tensor.endswith(".weight")]
    rank, base = mixture.settings.rank, mixture.options["base"]
    hub_name, revision = hub_model(base)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "revision": revision or None,
        "base_model_name_or_path": None if base in EMBEDDED else hub_name or base,
        "r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none", "inference_mode": True,
        "target_modules": names, "layers_to_transform": list(layers),
        "layers_pattern": family.ffn(0).split(".0.")[0].rpartition(".")[2],
    }  # fmt: skip
    with track("export", mixture.routed) as advance:
        for expert in range(mixture.routed):
            tensors = {
                f"base_model.model.{family.ffn(layer)}.{name}.lora_{end.upper()}.weight": mixture.read(
                    f"{family.ffn(layer)}.experts.{name}_{end}"
                )[expert].clone()
                for layer in layers
                for name in names
                for end in "ab"
            }
            folder = out / f"expert-{expert}"
            folder.mkdir(exist_ok=True)
            save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
            write_json(folder / "adapter_config.json", config)
            advance(1)
    write_adapters_card(out, mixture)
