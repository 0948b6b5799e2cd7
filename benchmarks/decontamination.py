"""Plant rewritten problems and count what decontamination finds; see what it flags in real data.

    python benchmarks/decontamination.py DATA_DIR [--every N] [--teacher NAME] [--clean FILE]

DATA_DIR has HumanEval.jsonl.gz and mbpp.jsonl. Each N-th problem of both becomes training pairs ("plants"). By default
they are rewritten by rules: statements get synonyms, another frame and no examples; solutions get new names, other
loops, other conditions. With a teacher (a server's address, or a local model), that model words the statement and
writes the solution anew; its answers are kept in XFT_CACHE. A plant whose code does not pass the problem's tests is
left out. Thresholds are looked at on one half of the problems and reported on the other; the records of FILE, which are
real data of mixed quality, show how many are flagged that nobody planted. `flags.jsonl` gets 200 of these with the
problems, to be judged by a reader; `decontamination_judged.csv` has the judgements, a line for each record and problem:

    task    the record asks for what the problem asks for, and does it
    code    it holds the problem's solution, under words that ask for something else
    chance  it does something else

A leak with a problem of the first kind is right, and so is a common one with the first or second; the rest are false.
"""

from __future__ import annotations

import argparse
import ast
import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from plants import Planted, by_rules, by_teacher, chosen

from xft.curate.config import CurateSource, DecontaminateConfig
from xft.curate.contamination import (
    ENOUGH,
    HINT,
    Finding,
    References,
    classify,
    load_references,
    python_of,
    runs_of,
    units_of,
    verdict,
    words_of,
)
from xft.curate.functional import Functional
from xft.curate.read import plan_shards, read_shard
from xft.data.example import Example
from xft.eval.benchmark import BENCHMARKS
from xft.eval.extract import parse
from xft.eval.functions import LIBRARIES
from xft.eval.sandbox import Sandbox
from xft.fetch import cache_dir
from xft.progress import track
from xft.synth.config import TeacherConfig
from xft.synth.teacher import open_teacher

JUDGED = Path(__file__).with_name("decontamination_judged.csv")
SAMPLE = 200
RIGHT = {"leak": {"task"}, "common": {"task", "code"}}
"""Judgements of which a record of a class needs one."""


@dataclass(frozen=True, kw_only=True)
class Plant:
    """A record that should be found, and what speaks for it."""

    kind: str
    half: int
    ngrams: float
    solution: float
    form: float
    """Of the function that is most like the solution."""
    form_left: float
    """Of those that were not refuted."""
    functional: bool
    refuted: bool
    """All functions that could be the solution were run and gave wrong answers, by functional matching's own limits."""
    statement: float


def still_solves(planted: Planted, references: References, sandbox: Sandbox) -> bool:
    """Tell whether one of a plant's functions passes its problem's tests, as the benchmark itself judges."""
    reference, code = references.all[planted.number], python_of(planted.record)
    functions = [node.name for node in getattr(parse(code), "body", []) if isinstance(node, ast.FunctionDef)]
    programs = (f"{code}\n{reference.problem.entry_point} = {name}\n" for name in reversed(functions))
    judge = BENCHMARKS[reference.benchmark].judge
    return any(judge(reference.problem, program, sandbox).status == "passed" for program in programs)


def taught(references: References, numbers: list[int], name: str) -> list[Planted]:
    """Let a teacher rewrite problems, and give its memory back."""
    store = cache_dir() / "answers"
    teacher = open_teacher(TeacherConfig(name=name, batch=32), store)
    made = list(by_teacher(references, numbers, teacher))
    teacher.backend.close()
    return made


def observe(planted: Planted, half: int, references: References, functional: Functional) -> Plant:
    """Collect what speaks for a plant."""
    number, kind, record = planted
    tree = parse(python_of(record))
    units = units_of(tree) if tree else []
    statement = references.statement_score(number, words_of(record.instruction))
    enough = references.all[number].asserts >= ENOUGH or statement >= HINT
    tried = functional.tried(record)
    forms = [(unit.line, float(references.form_overlaps(unit.shapes)[number])) for unit in units]
    ngrams, solution = references.run_shares(runs_of(record)).get(number, (0.0, 0.0))
    return Plant(
        kind=kind,
        half=half,
        ngrams=ngrams,
        solution=solution,
        form=max((form for _, form in forms), default=0.0),
        form_left=max((form for line, form in forms if (line, number) not in tried.refuted), default=0.0),
        functional=enough and number in tried.passed,
        refuted=number in tried.failed,
        statement=statement,
    )


def found(plant: Plant, config: DecontaminateConfig, methods: str) -> bool:
    """Tell whether a plant is a leak by these methods alone."""
    by_words = "ngrams" in methods and plant.ngrams >= config.ngrams
    ran = "functional" in methods
    solved = ran and plant.functional
    solved |= "ngrams" in methods and plant.solution >= config.ngrams and not (ran and plant.refuted)
    solved |= "ast" in methods and (plant.form_left if ran else plant.form) >= config.ast
    return by_words or (solved and plant.statement >= config.statement)


def matched(plant: Plant, config: DecontaminateConfig) -> bool:
    """Tell whether a plant is a leak or common by all methods together."""
    return found(plant, config.model_copy(update={"statement": 0.0}), "ngrams ast functional") or plant.functional


def share(seen: list[Plant], test: Callable[[Plant], bool]) -> str:
    """Return how many pass, in words."""
    count = sum(map(test, seen))
    return f"{count}/{len(seen)} ({count / max(len(seen), 1):.1%})"


def report(seen: list[Plant], config: DecontaminateConfig) -> None:
    """Print thresholds on one half, results on the other."""
    half = [plant for plant in seen if plant.half == 0]
    print(f"\nfirst half: {len(half)} plants; leaks found for each threshold of statement and ast")
    for statement in (0.2, 0.25, 0.3, 0.35, 0.4, 0.5):
        cells = []
        for form in (0.5, 0.6, 0.7, 0.8, 0.9):
            tried = config.model_copy(update={"statement": statement, "ast": form})
            cells.append(f"{np.mean([found(plant, tried, 'ngrams ast functional') for plant in half]):6.1%}")
        print(f"  statement {statement:4}:  " + "  ".join(cells) + "   (ast 0.5 0.6 0.7 0.8 0.9)")
    other = [plant for plant in seen if plant.half == 1]
    print(
        f"\nsecond half, thresholds of the configuration: {config.model_dump(include={'ngrams', 'ast', 'statement'})}"
    )
    for kind in dict.fromkeys([*(plant.kind for plant in other), "all"]):
        own = [plant for plant in other if kind in (plant.kind, "all")]
        print(
            f"  {kind:9} leak {share(own, lambda plant: found(plant, config, 'ngrams ast functional'))}"
            f" | leak or common {share(own, lambda plant: matched(plant, config))}"
        )
        print(
            f"  {'':9} alone: any run of ten words {share(own, lambda plant: plant.ngrams + plant.solution > 0)}"
            f", ngrams {share(own, lambda plant: found(plant, config, 'ngrams'))}"
            f", ast {share(own, lambda plant: found(plant, config, 'ast'))}"
            f", functional {share(own, lambda plant: found(plant, config, 'functional'))}"
        )


def flags(path: str, every: int, references: References, functional: Functional, config: DecontaminateConfig) -> None:
    """Classify real records; print how many are flagged, write a sample of those and say what a reader thought."""
    source = CurateSource(path=path)
    records = [
        item
        for shard in plan_shards([source])
        for item in read_shard(shard, source, "pairs")
        if isinstance(item, Example)
    ][::every]
    flagged: dict[str, tuple[str, list[Finding], Example]] = {}
    with track("real records", len(records)) as advance:
        for record in records:
            findings = classify(record, references, config, functional.tried(record))
            if kind := verdict(findings):
                digest = hashlib.sha256(f"{record.instruction}\0{record.response}".encode()).hexdigest()[:12]
                flagged[digest] = (kind, findings, record)
            advance(1)
    counts = Counter(kind for kind, _, _ in flagged.values())
    print(f"\n{path}: of {len(records)} records {counts['leak']} are leaks and {counts['common']} common")
    sample = sorted(flagged)[:SAMPLE]  # the least hashes: what a changed rule still flags stays a random sample
    problems = {(each.benchmark, each.problem.task_id): each.problem for each in references.all}
    with open("flags.jsonl", "w", encoding="utf-8") as file:
        for digest in sample:
            label, findings, record = flagged[digest]
            matches = [
                asdict(each) | {"stub": problem.stub, "canonical": problem.canonical}
                for each in findings
                if (problem := problems.get((each.benchmark, each.task)))
            ]
            line = {"record": digest, "class": label, "instruction": record.instruction, "response": record.response}
            file.write(json.dumps(line | {"problems": matches}) + "\n")
    print(f"flags.jsonl: {len(sample)} of them, to be judged by a reader")
    report_judged({digest: flagged[digest][:2] for digest in sample})


def report_judged(sample: dict[str, tuple[str, list[Finding]]]) -> None:
    """Print how many of the flags a reader found to be false."""
    with JUDGED.open(encoding="utf-8", newline="") as file:
        judged = {(row["record"], row["task"]): row["judgement"] for row in csv.DictReader(file)}
    for kind, right in RIGHT.items():
        own = {digest: {each.task for each in findings} for digest, (each, findings) in sample.items() if each == kind}
        known = {
            digest: {judged[digest, task] for task in tasks}
            for digest, tasks in own.items()
            if all((digest, task) in judged for task in tasks)
        }
        false = [digest for digest, seen in known.items() if seen.isdisjoint(right)]
        same = sum("task" in seen for seen in known.values())
        print(
            f"  {kind:6} {len(own)}, of which {len(known)} are judged: "
            f"{len(false)} false ({len(false) / max(len(known), 1):.1%}), {same} ask for the same task"
        )


def main() -> None:
    """Plant, look, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir")
    parser.add_argument("--every", type=int, default=1, help="use each n-th problem")
    parser.add_argument("--teacher", help="server's address, or a local model: folder, hub or pypi name")
    parser.add_argument("--clean", help="JSONL of real pairs")
    parser.add_argument("--clean-every", type=int, default=1, help="use each n-th record of it")
    options = parser.parse_args()
    os.environ["XFT_DATA"] = options.data_dir
    config = DecontaminateConfig()
    references, faults = load_references(config)
    print(f"{len(references.all)} problems; not at hand: {', '.join(faults) or 'none'}")
    numbers = chosen(references, options.every)
    planted = taught(references, numbers, options.teacher) if options.teacher else list(by_rules(references, numbers))
    with Sandbox(libraries=LIBRARIES) as sandbox:
        functional = Functional(references, sandbox)
        seen = []
        with track("plants", len(planted)) as advance:
            for each in planted:
                if still_solves(each, references, sandbox):
                    seen.append(observe(each, numbers.index(each.number) % 2, references, functional))
                advance(1)
        left_out = len(planted) - len(seen)
        print(f"{len(planted)} plants of {len(numbers)} problems, {left_out} left out since their code does not pass")
        report(seen, config)
        if options.clean:
            flags(options.clean, options.clean_every, references, functional, config)


if __name__ == "__main__":
    main()
