"""Merge the same checkpoints with mergekit and with xft, and compare every FFN weight.

    python benchmarks/mergekit_agreement.py --mergekit PYTHON --base BASE --moe MOE --out OUT

PYTHON is an interpreter with mergekit installed; MOE is a mixture that was made of the dense model BASE. Each expert is
written as a dense checkpoint (with the mixture's other weights), which mergekit then merges. Prints a row a method: the
largest difference of an FFN weight between the two, and the largest of the merge from the base for scale.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import torch
import yaml

from xft.checkpoint import Checkpoint
from xft.merge.combine import Options
from xft.merge.methods import MERGE_METHODS, Coefficients, equal_coefficients
from xft.merge.write import Differences, write_merged
from xft.moe.mixture import Mixture

SHARED_WEIGHT, DENSITY, SCALE = 0.75, 0.5, 1.3
METHODS = {
    "linear": ("uniform", {"normalize": False}, {}),
    "task_arithmetic": ("task-arithmetic", {"normalize": False, "lambda": SCALE}, {}),
    "ties": ("ties", {"normalize": True, "lambda": SCALE}, {"density": DENSITY}),
}
"""mergekit's name: xft's, mergekit's parameters, and those of each model."""


def main() -> None:
    """Write the experts, merge on both sides, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", required=True, help="python with mergekit")
    for name in ("base", "moe", "out"):
        parser.add_argument(f"--{name}", type=lambda path: Path(path).resolve(), required=True)  # else a hub's name
    options = parser.parse_args()
    mixture, base, out = Mixture(options.moe), Checkpoint(options.base), options.out
    experts = [
        made(out / f"expert-{number}", mixture, one_hot(mixture, number)) for number in range(mixture.routed + 1)
    ]
    plain = equal_coefficients(mixture.layers, mixture.routed, SHARED_WEIGHT)
    weights = plain.of(0, 0, mixture.pieces(0, mixture.parts[0])[0]).tolist()
    print(f"{'method':<18}{'xft - mergekit':>16}{'merge - base':>16}")
    for theirs, (ours, shared, each) in METHODS.items():
        method = MERGE_METHODS[ours]
        differences = method.differences and Differences(
            combine=method.differences, base=base, options=Options(density=DENSITY, scale=SCALE)
        )
        mine = made(out / f"xft-{ours}", mixture, plain, differences)
        config = {
            "merge_method": theirs,
            "dtype": "float32",
            "parameters": shared,
            "models": [
                {"model": str(expert), "parameters": {"weight": weight, **each}}
                for expert, weight in zip(experts, weights, strict=True)
            ],
        } | ({"base_model": str(options.base)} if method.differences else {})
        file, target = out / f"{theirs}.yaml", out / f"mergekit-{theirs}"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [options.mergekit, "-m", "mergekit.scripts.run_yaml", str(file), str(target)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print(f"{theirs:<18}{largest(mine, target, mixture):>16.2e}{largest(mine, options.base, mixture):>16.2e}")


def one_hot(mixture: Mixture, expert: int) -> Coefficients:
    """Return the coefficients that give one expert, the shared one for 0."""
    shares_LPR = torch.zeros(mixture.layers, 1, mixture.routed)
    shares_LPR[..., max(0, expert - 1)] = 1.0
    return Coefficients(shares_LPR, torch.full((mixture.layers, 1), float(expert == 0)))


def made(out: Path, mixture: Mixture, coefficients: Coefficients, differences: Differences | None = None) -> Path:
    """Write a merged model, once."""
    if not (out / "config.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        write_merged(mixture, coefficients, out, differences)
    return out


def largest(one: Path, other: Path, mixture: Mixture) -> float:
    """Return the largest difference of an FFN weight."""
    left, right = Checkpoint(one), Checkpoint(other)
    names = [name for layer in range(mixture.layers) for name in mixture.family.ffn_tensors(layer)]
    return max(float((left.read(name).float() - right.read(name).float()).abs().max()) for name in names)


if __name__ == "__main__":
    main()
