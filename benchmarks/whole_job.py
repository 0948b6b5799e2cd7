"""Time the whole way of a mixture, upcycling, tuning and the learned merge, against SFT of as many epochs in all.

    python benchmarks/whole_job.py [--recipe smollm2-135m-demo] [--layouts delta copy] [KEY=VALUE ...]

Each layout is a run of the recipe without benchmarks; the times are those of its manifests, the proof included.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from xft.recipe import Recipe, load_recipe
from xft.stage import read_manifest

STAGES = ("upcycle", "moe", "merge/learned")


def main() -> None:
    """Print a row a layout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="smollm2-135m-demo")
    parser.add_argument("--layouts", nargs="+", default=["delta"])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    stages = "".join(f"{stage:>15}" for stage in STAGES)
    print(f"{'layout':<9}{'SFT s':>8}{stages}{'sum / SFT':>11}{'peak GB':>9}{'SFT GB':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for layout in options.layouts:
            out = Path(folder, layout)
            command = [sys.executable, "-m", "xft", "run", options.recipe, "--out", str(out)]
            recipe: Recipe = load_recipe(options.recipe, options.overrides)
            passes = recipe.tune.epochs + recipe.merge.epochs
            command += [f"upcycle.layout={layout}", "eval.benchmarks=[]", f"sft.epochs={passes}", *options.overrides]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            manifests = {stage: read_manifest(out / stage) or {} for stage in ("sft", *STAGES)}
            sft, *others = (manifest["wall_seconds"] for manifest in manifests.values())
            peaks = [manifest["peak_memory_bytes"] / 1e9 for manifest in manifests.values()]
            cells = "".join(f"{seconds:>15.1f}" for seconds in others)
            print(f"{layout:<9}{sft:>8.1f}{cells}{sum(others) / sft:>11.2f}{max(peaks[1:]):>9.1f}{peaks[0]:>8.1f}")


if __name__ == "__main__":
    main()
