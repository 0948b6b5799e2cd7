"""Compare what tuning changed in the FFNs: SFT, the shared expert, the routed ones, their merge.

    python -m experiments.smollm2.alike RUN...

Each RUN is a folder of `xft run`, or of a cell of an experiment, that has SFT and a uniform merge of full copies. A
change is a tuned matrix less the base's; sizes are Frobenius norms over that of the base's matrix, means over layers.
With `sft.soup=2` there is a second SFT run, on the same pairs in another order, to compare the first with.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from safetensors import safe_open
from torch.nn.functional import cosine_similarity

MATRICES = ("gate_proj", "up_proj", "down_proj")
COLUMNS = ("size SFT", "shared", "routed", "merge", "SFT~merge", "SFT~shared", "routed~routed", "SFT~SFT")


def main() -> None:
    """Print a line for each run and kind of matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    print(f"{'':40}" + "".join(f"{column:>15}" for column in COLUMNS))
    for run in parser.parse_args().runs:
        for matrix in MATRICES:
            figures = alike(run, matrix)
            print(
                f"{f'{Path(*run.parts[-2:])} {matrix}':40}" + "".join(f"{figures[column]:>15.4f}" for column in COLUMNS)
            )


def alike(run: Path, matrix: str) -> Mapping[str, float]:
    """Return sizes of changes of one kind of matrix, and cosines (`~`) between them, means over layers."""
    places = {"base": "base", "sft": "sft", "merge": "merge/uniform", "moe": "moe"}
    if (run / "soup/2").is_dir():
        places["other"] = "soup/2"
    for place in places.values():
        if not (run / place / "model.safetensors").is_file():
            raise SystemExit(
                f"{run}: no {place}/model.safetensors; a run of SFT and a uniform merge of copies is needed"
            )
    files: dict[str, Any] = {
        name: safe_open(run / place / "model.safetensors", framework="pt") for name, place in places.items()
    }
    names = sorted(name for name in files["base"].keys() if name.endswith(f".mlp.{matrix}.weight"))  # noqa: SIM118
    found = []
    for name in names:
        layer = name.partition(".mlp.")[0]
        base_OI = files["base"].get_tensor(name).float()

        def change(file: str, key: str, base_OI: torch.Tensor = base_OI) -> torch.Tensor:
            tuned: torch.Tensor = files[file].get_tensor(key)
            return (tuned.float() - base_OI).flatten(-2)

        sft, merge = change("sft", name), change("merge", name)
        shared = change("moe", f"{layer}.mlp.shared_expert.{matrix}.weight")
        routed = change("moe", f"{layer}.mlp.experts.{matrix}")
        whole = base_OI.norm()
        sizes = [float(each.norm() / whole) for each in (sft, shared, merge)]
        among = [float(cosine_similarity(one, other, dim=0)) for one, other in itertools.combinations(routed, 2)]
        found.append(
            {
                "size SFT": sizes[0], "shared": sizes[1], "merge": sizes[2],
                "routed": float(routed.norm(dim=1).mean() / whole),
                "SFT~merge": float(cosine_similarity(sft, merge, dim=0)),
                "SFT~shared": float(cosine_similarity(sft, shared, dim=0)),
                "routed~routed": mean(among),
                "SFT~SFT": (
                    float(cosine_similarity(sft, change("other", name), dim=0)) if "other" in files else math.nan
                ),
            }
        )  # fmt: skip
    return {column: mean(each[column] for each in found) for column in COLUMNS}


if __name__ == "__main__":
    main()
