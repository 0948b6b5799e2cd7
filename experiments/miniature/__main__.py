"""Make all in one folder: the base, the pairs and the problems. What is there is kept, so a killed run goes on."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.miniature import pairs, pretrain


def main(arguments: list[str] | None = None) -> None:
    """Make whatever is not there."""
    parser = argparse.ArgumentParser(prog="python -m experiments.miniature", description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/miniature"))
    out = parser.parse_args(arguments).out
    if not (out / "train.jsonl").exists():
        pairs.main([str(out)])
    if not (out / "base" / "config.json").exists():
        pretrain.main([str(out / "base")])


if __name__ == "__main__":
    main()
