"""Compare verdicts with EvalPlus's own on mutated canonical solutions and on samples that models made.

    python benchmarks/evalplus_agreement.py --evalplus PYTHON --data DIR --out OUT [--samples BENCH=FILE ...]

PYTHON is an interpreter with evalplus==0.3.1 installed; DIR has HumanEvalPlus.jsonl.gz and MbppPlus.jsonl.gz; FILE has
lines of task_id and code, solution or completion. Writes into OUT: the samples, both sides' verdicts, and
disagreements.jsonl with each program. A disagreement that involves a time limit is judged again by both sides, alone.
EvalPlus runs candidates with little protection: the mutants are harmless, but know the samples that you give it.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gzip
import json
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from xft.eval.benchmark import Problem
from xft.eval.benchmarks import BENCHMARKS
from xft.eval.evalplus import PARTS
from xft.synth.mutate import OPERATORS

SETS = {"humaneval+": ("humaneval", "HumanEvalPlus"), "mbpp+": ("mbpp", "MbppPlus")}
LEAST_S = 4.0

DRIVER = """
import json, sys
from concurrent.futures import ProcessPoolExecutor
from evalplus.data import get_human_eval_plus, get_human_eval_plus_hash, get_mbpp_plus, get_mbpp_plus_hash
from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS
from evalplus.evaluate import check_correctness, get_groundtruth

def main(dataset, samples, verdicts, workers, least):
    if dataset == "humaneval":
        problems = get_human_eval_plus()
        expected = get_groundtruth(problems, get_human_eval_plus_hash(), [])
    else:
        problems = get_mbpp_plus()
        expected = get_groundtruth(problems, get_mbpp_plus_hash(), MBPP_OUTPUT_NOT_NONE_TASKS)
    with ProcessPoolExecutor(int(workers)) as pool, open(verdicts, "a") as out:
        waiting = []
        for number, line in enumerate(open(samples)):
            sample = json.loads(line)
            task = sample["task_id"]
            waiting.append((sample["id"], pool.submit(
                check_correctness, dataset, number, problems[task], sample["solution"], expected[task],
                False, True, number, float(least))))
        for name, future in waiting:
            result = future.result()
            out.write(json.dumps({"id": name, "base": result["base"][0], "plus": result["plus"][0]}) + chr(10))
            out.flush()

if __name__ == "__main__":
    main(*sys.argv[1:])
"""

# --- mutants ----------------------------------------------------------------------------------------------------------

WRAPPERS = (
    *(
        "tuple(v)",
        "list(v)",
        "set(v)",
        "frozenset(v)",
        "sorted(v)",
        "list(v)[::-1]",
        "list(v) + list(v)",
        "[v]",
        "(v,)",
    ),
    *("str(v)", "float(v)", "int(v)", "bool(v)", "not v", "v + 1e-9", "v + 1e-5", "v * (1 + 5e-8)", "v * (1 + 1e-5)"),
    *("round(v, 3)", "[x + 1e-9 for x in v]", "[x * 1.0 for x in v]", "None", "iter(v)", "(x for x in v)", "v.keys()"),
    *("type('S', (type(v),), {})(v)", "collections.Counter(v)", "collections.OrderedDict(v)", "collections.deque(v)"),
    *("numpy.float64(v)", "numpy.int64(v)", "numpy.array(v)", "[numpy.float32(x) for x in v]", "complex(v)"),
    *("fractions.Fraction(v)", "decimal.Decimal(v)", "v.encode()", "v.strip()", "v.lower()", "v + ''", "v or None"),
    *(
        "sys.exit(0)",
        "print(v)",
        "[list(x) for x in v]",
        "[tuple(x) for x in v]",
        "{**v}",
        "dict(v.items())",
        "max(v, 0)",
    ),
)
WRAPPED = """{program}

import collections, decimal, fractions, sys, numpy
_whole = {name}
def {name}(*arguments):
    v = _whole(*arguments)
    try:
        return {wrapper}
    except (TypeError, ValueError, AttributeError, ArithmeticError):
        return v
"""
ARGUMENTS = """{program}

_whole = {name}
def {name}(*arguments):
    result = _whole(*arguments)
    for argument in arguments:
        if isinstance(argument, list):
            argument.clear()
    return result
"""
HOSTILE = {
    "equals everything": """
class Everything:
    def __eq__(self, other):
        return True
def {name}(*arguments):
    return Everything()
""",
    "reads the expected output": """
import sys
def {name}(*arguments):
    frame = sys._getframe(1)
    while frame:
        if "expected" in frame.f_locals and "i" in frame.f_locals:
            return frame.f_locals["expected"][frame.f_locals["i"]]
        frame = frame.f_back
""",
    "writes the verdict": """
import os, sys
def {name}(*arguments):
    frame = sys._getframe(1)
    while frame:
        if "details" in frame.f_locals and "stat" in frame.f_locals:
            found = frame.f_locals
            for number in range(len(found["inputs"])):
                found["details"][number] = True
            found["progress"].value, found["stat"].value = len(found["inputs"]), 0
        frame = frame.f_back
    os._exit(0)
""",
    "empties its arguments": """
def {name}(*arguments):
    for argument in arguments:
        if isinstance(argument, list):
            argument.clear()
    return 0
""",
}
"""Wrong solutions that take advantage of a grader in their own process."""
HOSTILE_FIRST, HOSTILE_EVERY = 12, 20  # find_zero is among them


def mutate(tree: ast.Module, choice: random.Random) -> str | None:
    """Change one thing in a program; None where the place chosen can't be changed."""
    tree = copy.deepcopy(tree)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    nodes = [node for function in functions for node in ast.walk(function)]
    node = choice.choice(nodes)
    match node:
        case ast.Compare(ops=[operator]) if type(operator) in OPERATORS:
            node.ops = [OPERATORS[type(operator)]()]  # type: ignore[list-item]
        case ast.BinOp(op=operator) | ast.BoolOp(op=operator) | ast.AugAssign(op=operator) if (
            type(operator) in OPERATORS
        ):
            node.op = OPERATORS[type(operator)]()  # type: ignore[assignment]
        case ast.Constant(value=bool()):
            node.value = not node.value
        case ast.Constant(value=int(number)):
            node.value = number + choice.choice((-1, 1))
        case ast.Constant(value=float(number)):
            node.value = number + choice.choice((0.5, 1e-7))
        case ast.Constant(value=str(text)) if len(text) < 30:
            node.value = choice.choice(("", f"{text}x", text.upper(), text[::-1]))
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            node.op = ast.UAdd() if isinstance(node.op, ast.USub) else node.op
            node.operand = operand if isinstance(node.op, ast.UAdd) else ast.UnaryOp(op=ast.Not(), operand=operand)
        case ast.Return(value=value) if value is not None:
            text = ast.unparse(value)
            forms = (
                "None",
                "({0},)",
                "[{0}]",
                "not ({0})",
                "str({0})",
                "-({0})",
                "({0}) + 1",
                "list({0})",
                "tuple({0})",
            )
            node.value = ast.parse(choice.choice(forms).format(text), mode="eval").body
        case ast.Call(args=[_, *_]):
            node.args = node.args[::-1] if choice.random() < 0.5 else node.args[:-1]
        case ast.If(test=test):
            node.test = choice.choice(
                (ast.UnaryOp(op=ast.Not(), operand=test), ast.Constant(True), ast.Constant(False))
            )
        case ast.For():
            node.body.append(ast.Break())
        case ast.FunctionDef() if len(node.body) > 1:
            del node.body[choice.randrange(len(node.body))]
        case ast.Subscript(slice=ast.expr() as index) if not isinstance(index, ast.Slice):
            node.slice = ast.BinOp(left=index, op=ast.Add(), right=ast.Constant(1))
        case _:
            return None
    try:
        text = ast.unparse(ast.fix_missing_locations(tree))
        compile(text, "mutant", "exec")
    except (SyntaxError, ValueError, TypeError):
        return None
    return text


def mutants(problem: Problem, count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield kinds and programs: the canonical one, `count` mutants of it, and half as many with a wrapper."""
    choice = random.Random(f"{seed} {problem.task_id}")
    program = problem.stub + problem.canonical
    yield "canonical", program
    tree, seen = ast.parse(program), {ast.unparse(ast.parse(program))}
    for _ in range(100 * count):
        if len(seen) > count:
            break
        text = mutate(tree, choice)
        if text and text not in seen:
            seen.add(text)
            yield "mutant", text
    for wrapper in choice.sample(WRAPPERS, (count + 1) // 2):
        yield wrapper, WRAPPED.format(program=program, name=problem.entry_point, wrapper=wrapper)
    if choice.random() < 0.2:
        yield "arguments cleared", ARGUMENTS.format(program=program, name=problem.entry_point)


# --- both sides -------------------------------------------------------------------------------------------------------

Sample = dict[str, Any]


def run_evalplus(
    bench: str, samples: Sequence[Sample], out: Path, options: argparse.Namespace, workers: int
) -> dict[str, Any]:
    """Let EvalPlus judge the samples that its file of verdicts lacks; return base and plus of each."""
    dataset, file = SETS[bench]
    verdicts = out / f"{dataset}-evalplus.jsonl"
    known = _read(verdicts)
    missing = [sample for sample in samples if sample["id"] not in known]
    if missing:
        unpacked = options.out / f"{file}.jsonl"
        if not unpacked.exists():
            unpacked.write_bytes(gzip.decompress((options.data / f"{file}.jsonl.gz").read_bytes()))
        asked = out / f"{dataset}-asked.jsonl"
        asked.write_text("".join(json.dumps(sample) + "\n" for sample in missing))
        driver = out / "driver.py"
        driver.write_text(DRIVER)
        environment = {
            **os.environ,
            "XDG_CACHE_HOME": str(options.out / "cache"),
            "HUMANEVAL_OVERRIDE_PATH": str(options.out / "HumanEvalPlus.jsonl"),
            "MBPP_OVERRIDE_PATH": str(options.out / "MbppPlus.jsonl"),
        }
        command = [options.evalplus, driver, dataset, asked, verdicts, str(workers), str(LEAST_S)]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        known = _read(verdicts)
    return {sample["id"]: {part: known[sample["id"]][part] for part in PARTS} for sample in samples}


def run_ours(bench: str, samples: Sequence[Sample], out: Path, workers: int) -> dict[str, Any]:
    """Judge the samples that our file of verdicts lacks; what ran short of time is judged again, alone."""
    benchmark = BENCHMARKS[bench]
    problems = {problem.task_id: problem for problem in benchmark.problems()}
    verdicts = out / f"{SETS[bench][0]}-xft.jsonl"
    known = _read(verdicts)
    missing = [sample for sample in samples if sample["id"] not in known]
    with benchmark.sandbox() as sandbox, verdicts.open("a") as file, ThreadPoolExecutor(workers) as pool:

        def judge(sample: Sample) -> Any:
            return benchmark.judge(problems[sample["task_id"]], sample["solution"], sandbox)

        def keep(sample: Sample, verdict: Any) -> None:
            line = {"id": sample["id"], **verdict.parts, "status": verdict.status, "error": verdict.error}
            file.write(json.dumps(line) + "\n")
            file.flush()

        again = []
        for sample, verdict in zip(missing, pool.map(judge, missing), strict=True):
            again.append(sample) if verdict.strained else keep(sample, verdict)
        for sample in again:
            keep(sample, judge(sample))
    known = _read(verdicts)
    return {sample["id"]: known[sample["id"]] for sample in samples}


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    return {line["id"]: line for line in map(json.loads, path.read_text().splitlines())}


def disagreements(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Return the samples of which a part has different verdicts."""
    return [name for name in ours if any(ours[name][part] != (theirs[name][part] == "pass") for part in PARTS)]


def samples_of(path: Path, problems: dict[str, Problem]) -> Iterator[Sample]:
    """Read samples made elsewhere."""
    for number, line in enumerate(path.read_text().splitlines()):
        row = json.loads(line)
        if row["task_id"] in problems:
            stub = problems[row["task_id"]].stub
            program = row.get("code", row.get("solution", stub + row.get("completion", "")))
            yield {"id": f"{path}:{number}", "task_id": row["task_id"], "kind": "model", "solution": program}


def main() -> None:
    """Run both sides and print what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evalplus", required=True, help="interpreter with evalplus==0.3.1")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--mutants", type=int, default=6, help="of each problem; half as many wrapped ones come on top")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=int, help="of samples made here, drawn from all; a larger one goes on")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--bench", choices=sorted(SETS), action="append")
    parser.add_argument("--samples", action="append", default=[], metavar="BENCH=FILE")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["XFT_DATA"] = str(options.data)
    for bench in options.bench or sorted(SETS):
        problems = {problem.task_id: problem for problem in BENCHMARKS[bench].problems()}
        samples = [
            {"id": f"{task} {number}", "task_id": task, "kind": kind, "solution": program}
            for task, problem in problems.items()
            for number, (kind, program) in enumerate(mutants(problem, options.mutants, options.seed))
        ]
        random.Random(options.seed).shuffle(samples)
        samples = samples[: options.limit]
        samples += [
            {"id": f"{task} {kind}", "task_id": task, "kind": kind, "solution": text.format(name=problem.entry_point)}
            for task, problem in list(problems.items())[HOSTILE_FIRST::HOSTILE_EVERY]
            for kind, text in HOSTILE.items()
        ]
        for entry in options.samples:
            name, _, file = entry.partition("=")
            samples += samples_of(Path(file), problems) if name == bench else []
        compare(bench, samples, options)


def compare(bench: str, samples: list[Sample], options: argparse.Namespace) -> None:
    """Compare one benchmark's verdicts."""
    began = time.monotonic()
    print(f"{bench}: {len(samples)} samples", flush=True)
    theirs = run_evalplus(bench, samples, options.out, options, options.workers)
    middle = time.monotonic()
    ours = run_ours(bench, samples, options.out, options.workers)
    print(f"  EvalPlus {middle - began:.0f} s, xft {time.monotonic() - middle:.0f} s")
    by_name = {sample["id"]: sample for sample in samples}
    different = disagreements(ours, theirs)
    slow = [name for name in different if "timeout" in (ours[name]["status"], *theirs[name].values())]
    for attempt in range(3 if slow else 0):
        alone = options.out / f"alone-{attempt}"
        alone.mkdir(exist_ok=True)
        again = [by_name[name] for name in slow]
        theirs |= run_evalplus(bench, again, alone, options, 1)
        ours |= run_ours(bench, again, alone, 1)
        slow = [name for name in disagreements(ours, theirs) if name in slow]
        if not slow:
            break
    different = disagreements(ours, theirs)
    for part in PARTS:
        usual = [name for name in ours if by_name[name]["kind"] not in HOSTILE]
        table = Counter((theirs[name][part] == "pass", ours[name][part]) for name in usual)
        print(
            f"  {part}: both pass {table[True, True]}, both fail {table[False, False]}, "
            f"only EvalPlus passes {table[True, False]}, only xft passes {table[False, True]}"
        )
    for kind in HOSTILE:
        names = [name for name in ours if by_name[name]["kind"] == kind]
        fooled = sum(theirs[name]["base"] == theirs[name]["plus"] == "pass" for name in names)
        passed = sum(ours[name]["base"] and ours[name]["plus"] for name in names)
        print(f"  hostile, {kind}: of {len(names)} wrong programs EvalPlus passes {fooled}, xft {passed}")
    with (options.out / f"{SETS[bench][0]}-disagreements.jsonl").open("w") as file:
        for name in different:
            row = {**by_name[name], "evalplus": theirs[name], "xft": ours[name]}
            file.write(json.dumps(row) + "\n")
            if row["kind"] not in HOSTILE:
                print(f"  {name} ({row['kind']}): EvalPlus {theirs[name]}, xft {ours[name]}")


if __name__ == "__main__":
    main()
