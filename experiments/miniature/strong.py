"""Tune the base on the first pairs, so that it is strong; the other pairs are left for the methods to compare.

`python -m experiments.miniature.strong OUT` reads OUT/train.jsonl; it writes OUT/train-first.jsonl and
OUT/train-rest.jsonl, and the checkpoint OUT/strong.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FIRST = 1000
"""Pairs that the strong base has learned from."""
OPTIONS = "--epochs 3 --lr 3e-3 --batch 16 --micro-batch 16 --max-length 256 --set optimizer=adamw --set precision=fp32"


def make(out: Path) -> None:
    """Write the two files and the checkpoint; what is there already is kept.

    Raises:
        SystemExit: the tuning failed; its message is above.
    """
    lines = (out / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for name, part in {"first": lines[:FIRST], "rest": lines[FIRST:]}.items():
        (out / f"train-{name}.jsonl").write_text("".join(part), encoding="utf-8")
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # sums, so the checkpoint, differ with the number of threads
    command = [sys.executable, "-m", "xft", "tune", str(Path(__file__).parent / "base"), str(out / "strong")]
    done = subprocess.run(
        [*command, "--data", str(out / "train-first.jsonl"), *OPTIONS.split()], check=False, env=one_thread
    )
    if done.returncode:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
