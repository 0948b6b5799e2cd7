"""Make the pairs, the problems and the strong base in one folder; with `--base` another base too, made only once."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.miniature import pairs, pretrain, strong


def main(arguments: list[str] | None = None) -> None:
    """Make whatever is not there; a killed run goes on."""
    parser = argparse.ArgumentParser(prog="python -m experiments.miniature", description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/miniature"))
    parser.add_argument("--base", action="store_true", help="pre-train a base too, into OUT/base")
    given = parser.parse_args(arguments)
    if not (given.out / "train.jsonl").exists():
        pairs.main([str(given.out)])
    strong.make(given.out)
    if given.base and not (given.out / "base" / "config.json").exists():
        pretrain.main([str(given.out / "base")])


if __name__ == "__main__":
    main()
