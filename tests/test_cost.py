from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from xft.cost import count, count_checkpoint


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_counting_from_the_config_alone_gives_what_the_loaded_model_has(
    kind: str, tied: bool, dense_of: Callable[..., Path], moe_of: Callable[..., Path]
) -> None:
    folder = {"dense": dense_of, "mixture": moe_of}[kind]("qwen2", tie_word_embeddings=tied)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    counted = count_checkpoint(folder)
    assert counted == count(model)
    assert counted.parameters == sum(parameter.numel() for parameter in model.parameters())
