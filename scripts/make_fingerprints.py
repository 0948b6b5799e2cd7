"""Write src/xft/data/fingerprints/ from a folder that holds HumanEval.jsonl.gz and mbpp.jsonl.

python scripts/make_fingerprints.py FOLDER
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np

from xft.data.overlap import tengrams

OUT = Path(__file__).parents[1] / "src" / "xft" / "data" / "fingerprints"
FIELDS = {
    "humaneval": ("HumanEval.jsonl.gz", ("prompt", "canonical_solution", "test")),
    "mbpp": ("mbpp.jsonl", ("text", "code", "test_list", "challenge_test_list")),
}


def main(folder: Path) -> None:
    """Hash every 10-gram of every field."""
    for benchmark, (name, fields) in FIELDS.items():
        path = folder / name
        raw = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
        hashes: set[int] = set()
        for line in raw.decode().splitlines():
            row = json.loads(line)
            for field in fields:
                text = row[field] if isinstance(row[field], str) else "\n".join(row[field])
                hashes |= tengrams(text)
        np.array(sorted(hashes), dtype="<u8").tofile(OUT / f"{benchmark}.u64")
        print(f"{benchmark}: {len(hashes)} hashes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
