"""Time the scoring of HumanEval+ side by side with EvalPlus: one sample a problem, whole commands, on two cores.

    python benchmarks/humaneval_plus.py --evalplus PYTHON --data DIR --scratch DIR [--rounds N]

PYTHON is an interpreter with evalplus==0.3.1 installed; DIR has HumanEvalPlus.jsonl.gz. The samples are the canonical
solutions: every test of every problem runs. Each round times, in turn, EvalPlus with its own number of workers (half
the cores), EvalPlus with as many workers as cores, and `xft eval score`; first with no expected outputs in any cache,
then with them there. EvalPlus's clock stops when its file of results is there, as its process then sleeps on.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

CORES = 2
LEAST_S = 4.0
LOOK_S = 0.01


def evalplus(python: str, scratch: Path, *, workers: int | None, first: bool) -> float:
    """Score with EvalPlus; return the seconds until its results are written."""
    cache = scratch / "evalplus-cache"
    if first:
        shutil.rmtree(cache, ignore_errors=True)
    results = scratch / "samples_eval_results.json"
    results.unlink(missing_ok=True)
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "HUMANEVAL_OVERRIDE_PATH": str(scratch / "data.jsonl")}
    command = [python, "-m", "evalplus.evaluate", "--dataset", "humaneval", "--samples", str(scratch / "samples.jsonl")]
    command += ["--min-time-limit", str(LEAST_S), *(["--parallel", str(workers)] if workers else [])]
    began, taken = time.monotonic(), None
    null = subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, stdin=null, stdout=null, stderr=null) as process:
        while process.poll() is None:
            if taken is None and _whole(results):
                taken = time.monotonic() - began
            time.sleep(LOOK_S)
    if taken is None:
        raise SystemExit(f"EvalPlus ended with code {process.returncode} and without results")
    return taken


def _whole(results: Path) -> bool:
    """Tell whether the results are written to their end."""
    try:
        return results.stat().st_size > 0 and bool(json.loads(results.read_text()))
    except (OSError, ValueError):
        return False


def xft(scratch: Path, *, first: bool) -> float:
    """Score with xft; return the seconds that the command took."""
    cache, out = scratch / "xft-cache", scratch / "xft-scores"
    if first:
        shutil.rmtree(cache, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    command = [str(Path(sys.executable).with_name("xft")), "eval", "score", str(scratch / "samples.jsonl")]
    command += ["--bench", "humaneval+", "--data-dir", str(scratch), "--out", str(out), "--workers", str(CORES)]
    environment = {**os.environ, "XFT_CACHE": str(cache)}
    began = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    taken = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"xft failed: {done.stdout}{done.stderr}")
    return taken


def main() -> None:
    """Time all and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evalplus", required=True, help="interpreter with evalplus==0.3.1")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--scratch", required=True, type=Path)
    parser.add_argument("--rounds", type=int, default=5, help="with expected outputs cached")
    parser.add_argument("--first-rounds", type=int, default=1)
    options = parser.parse_args()
    scratch = options.scratch.absolute()
    scratch.mkdir(parents=True, exist_ok=True)
    packed = options.data / "HumanEvalPlus.jsonl.gz"
    shutil.copyfile(packed, scratch / packed.name)
    (scratch / "data.jsonl").write_bytes(gzip.decompress(packed.read_bytes()))
    with (scratch / "samples.jsonl").open("w") as file:
        for row in map(json.loads, (scratch / "data.jsonl").read_text().splitlines()):
            sample = {"task_id": row["task_id"], "solution": row["prompt"] + row["canonical_solution"]}
            file.write(json.dumps(sample) + "\n")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    for first, rounds in ((True, options.first_rounds), (False, options.rounds)):
        sides = {
            "EvalPlus, its default workers": partial(evalplus, options.evalplus, scratch, workers=None, first=first),
            f"EvalPlus, {CORES} workers": partial(evalplus, options.evalplus, scratch, workers=CORES, first=first),
            f"xft, {CORES} workers": partial(xft, scratch, first=first),
        }
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, run in sides.items():
                taken[name].append(run())
                said = f"{taken[name][-1]:.1f} s (load {os.getloadavg()[0]:.1f})"
                print(f"  {name}: {said}", file=sys.stderr, flush=True)
        report("first run, nothing cached" if first else "expected outputs cached", taken)


def report(title: str, taken: dict[str, list[float]]) -> None:
    """Print least and middle times, and what xft takes in relation."""
    print(title)
    ours = list(taken.values())[-1]
    for name, times in taken.items():
        least, middle = min(times), statistics.median(times)
        print(
            f"  {name}: min {least:.1f} s, median {middle:.1f} s; "
            f"xft takes {min(ours) / least:.2f} of the min, {statistics.median(ours) / middle:.2f} of the median"
        )


if __name__ == "__main__":
    main()
