"""Run every shipped response against its own checks in the sandbox, and look for overlap with benchmarks.

    python scripts/check_pairs.py [FILE]

Each pair must pass, must fail when its functions return nothing, and must share no 10-word run with HumanEval or MBPP.
"""

from __future__ import annotations

import ast
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from xft.data.overlap import load_fingerprints, tengrams
from xft.eval.sandbox import Sandbox

SHIPPED = Path(__file__).parents[1] / "src" / "xft" / "data" / "python.jsonl"
FENCE = "```python\n"


def code_of(response: str) -> str:
    """Return the code of a response's one fence."""
    return response.split(FENCE, 1)[1].split("\n```", 1)[0] + "\n"


def hollow(code: str) -> str:
    """Return the code with every function's body replaced by `return None`."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [ast.Return(ast.Constant(None))]
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def faults(pair: dict[str, Any], sandbox: Sandbox, known: frozenset[int]) -> list[str]:
    """Return what is wrong with a pair."""
    found = []
    code, tests = code_of(pair["response"]), pair["tests"]
    right = sandbox.run(f"{code}\n{tests}\n", seconds=10, memory_mb=1024)
    if right.status != "passed":
        found.append(f"its own checks: {right.status} {right.error}")
    if sandbox.run(f"{hollow(code)}\n{tests}\n", seconds=10, memory_mb=1024).status == "passed":
        found.append("its checks pass without any code")
    if tengrams(f"{pair['instruction']}\n{pair['response']}\n{tests}") & known:
        found.append("shares ten words in a row with a benchmark")
    return found


def main(path: Path) -> int:
    """Check all pairs; return the number of those with a fault."""
    pairs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    known = load_fingerprints("humaneval") | load_fingerprints("mbpp")
    with Sandbox() as sandbox, ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda pair: faults(pair, sandbox, known), pairs))
    bad = 0
    for pair, found in zip(pairs, results, strict=True):
        bad += bool(found)
        for fault in found:
            print(f"{pair['id']}: {fault}")
    instructions = {pair["instruction"] for pair in pairs}
    print(
        f"{len(pairs)} pairs, {len(instructions)} different instructions, {bad} with a fault (sandbox {sandbox.level})"
    )
    return bad


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED) > 0)
