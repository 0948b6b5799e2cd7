"""What tuning changed, compared: a made-up run whose answers are known."""

import math

import pytest
import torch
from safetensors.torch import save_file

from experiments.smollm2.alike import MATRICES, alike


@pytest.fixture
def run(tmp_path):
    """Two layers; SFT and the merge add the same, the routed experts that or what is orthogonal to it."""
    base, here, aside = torch.ones(4, 6), torch.zeros(4, 6), torch.zeros(4, 6)
    here[0, 0], aside[1, 1] = 0.1, 0.2
    folders = {name: {} for name in ("base", "sft", "merge/uniform", "soup/2", "moe")}
    for layer in range(2):
        for matrix in MATRICES:
            place = f"model.layers.{layer}.mlp"
            dense = f"{place}.{matrix}.weight"
            folders["base"][dense] = base
            folders["sft"][dense] = folders["merge/uniform"][dense] = base + here
            folders["soup/2"][dense] = base - here
            folders["moe"][f"{place}.shared_expert.{matrix}.weight"] = base + 2 * here + aside
            folders["moe"][f"{place}.experts.{matrix}"] = torch.stack([base + here, base + aside])
    for name, tensors in folders.items():
        (tmp_path / name).mkdir(parents=True)
        save_file({key: value.clone() for key, value in tensors.items()}, tmp_path / name / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("matrix", MATRICES)
def test_sizes_and_cosines_are_those_of_the_changes(run, matrix):
    found = alike(run, matrix)
    whole = math.sqrt(24)
    wanted = {
        "size SFT": 0.1 / whole, "merge": 0.1 / whole, "shared": math.sqrt(0.08) / whole, "routed": 0.15 / whole,
        "SFT~merge": 1.0, "SFT~shared": math.sqrt(0.5), "routed~routed": 0.0, "SFT~SFT": -1.0,
    }  # fmt: skip
    assert found == pytest.approx(wanted, abs=1e-6)


def test_a_run_of_one_sft_has_no_other(run):
    (run / "soup/2").rename(run / "elsewhere")
    assert math.isnan(alike(run, MATRICES[0])["SFT~SFT"])
