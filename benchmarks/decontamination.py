"""Plant rewritten problems and count what decontamination finds; see what it flags in real data.

    python benchmarks/decontamination.py DATA_DIR [--every N] [--clean FILE]

DATA_DIR has HumanEval.jsonl.gz and mbpp.jsonl. Each N-th problem of both becomes training pairs ("plants"), rewritten
by rules, not by a model: statements get synonyms, another frame and no examples; solutions get new names, other loops,
other conditions. A plant whose code no longer passes the problem's tests is left out. Thresholds are looked at on one
half of the problems and reported on the other; the records of FILE, which are real data of mixed quality, show how
many are flagged that nobody planted. With FILE, `flags.jsonl` gets a sample of what was flagged there, to be judged.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xft.curate.config import CurateSource, DecontaminateConfig
from xft.curate.contamination import (
    ENOUGH,
    HINT,
    References,
    classify,
    load_references,
    python_of,
    runs_of,
    solution_of,
    units_of,
    verdict,
    words_of,
)
from xft.curate.functional import Functional
from xft.curate.read import plan_shards, read_shard
from xft.data.example import Example
from xft.eval.extract import parse
from xft.eval.functions import LIBRARIES
from xft.eval.sandbox import Sandbox
from xft.progress import track

SYNONYMS = {
    "return": "give back", "returns": "gives back", "write": "implement", "function": "routine", "given": "supplied",
    "find": "determine", "check": "verify", "list": "sequence", "array": "sequence", "number": "value",
    "numbers": "values", "string": "text", "strings": "texts", "integers": "whole numbers", "integer": "whole number",
    "all": "every one of the", "sum": "total", "largest": "biggest", "smallest": "least", "maximum": "highest",
    "minimum": "lowest", "elements": "items", "element": "item", "whether": "if", "count": "tally", "remove": "drop",
    "sort": "order", "python": "plain", "input": "argument", "two": "a pair of", "first": "leading", "length": "size",
    "calculate": "compute", "convert": "turn", "contains": "holds", "using": "by means of", "dictionary": "mapping",
    "tuple": "record", "tuples": "records", "words": "terms", "word": "term", "characters": "letters",
    "character": "letter", "equal": "identical", "between": "among", "only": "just", "true": "yes", "false": "no",
}  # fmt: skip
FRAMES = (
    "I need some help. {0}",
    "{0} Keep it short and readable, please.",
    "As part of a larger program I have the following task: {0}",
    "{0} Explain nothing, I want to see code.",
)


# --- rewriting --------------------------------------------------------------------------------------------------------


def description(stub: str) -> str:
    """Return a statement's words without imports, signature and examples."""
    text = re.sub(r"^(?:from|import|def|assert|class) .*$", "", stub, flags=re.M)
    text = re.split(r">>>|For example|Examples?:|e\.g\.", text.replace('"""', "").replace("'''", ""), maxsplit=1)[0]
    return " ".join(text.split())


def paraphrase(stub: str, chance: random.Random) -> str:
    """Return a statement in other words: synonyms, sentences in another order, another frame."""
    sentences = re.split(r"(?<=[.!?]) ", description(stub))
    if len(sentences) > 2:
        first, rest = sentences[0], sentences[1:]
        chance.shuffle(rest)
        sentences = [*rest, first]
    words = " ".join(sentences).split(" ")
    changed = [SYNONYMS.get(word.lower().strip(".,"), word) if chance.random() < 0.8 else word for word in words]
    return chance.choice(FRAMES).format(" ".join(changed))


class Rename(ast.NodeTransformer):
    """Give functions, arguments and variables that a program defines other names."""

    def __init__(self, tree: ast.Module) -> None:
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        defined |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        defined |= {
            node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        self.names = {name: f"{'abcdefgh'[number % 8]}{number}" for number, name in enumerate(sorted(defined))}

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """Rename a variable."""
        node.id = self.names.get(node.id, node.id)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        """Rename an argument, without its annotation."""
        node.arg, node.annotation = self.names.get(node.arg, node.arg), None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Rename a function, without its docstring and annotation."""
        self.generic_visit(node)
        node.name, node.returns = self.names.get(node.name, node.name), None
        if ast.get_docstring(node) is not None and len(node.body) > 1:
            node.body = node.body[1:]
        return node


class Restyle(ast.NodeTransformer):
    """Say the same in another style: loops, comprehensions, conditions, assignments."""

    def __init__(self) -> None:
        self.count = 0

    def fresh(self) -> str:
        """Return a name that nothing has."""
        self.count += 1
        return f"tmp{self.count}"

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        """Write `x += y` out."""
        if not isinstance(node.target, ast.Name):
            return node
        read = ast.Name(id=node.target.id, ctx=ast.Load())
        return ast.Assign(targets=[node.target], value=ast.BinOp(left=read, op=node.op, right=node.value))

    def visit_If(self, node: ast.If) -> ast.AST:
        """Ask the opposite."""
        self.generic_visit(node)
        if node.orelse and not isinstance(node.orelse[0], ast.If):
            return ast.If(test=ast.UnaryOp(op=ast.Not(), operand=node.test), body=node.orelse, orelse=node.body)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """Turn a comparison round."""
        self.generic_visit(node)
        turned = {
            ast.Lt: ast.Gt,
            ast.Gt: ast.Lt,
            ast.LtE: ast.GtE,
            ast.GtE: ast.LtE,
            ast.Eq: ast.Eq,
            ast.NotEq: ast.NotEq,
        }
        if len(node.ops) == 1 and type(node.ops[0]) in turned:
            return ast.Compare(left=node.comparators[0], ops=[turned[type(node.ops[0])]()], comparators=[node.left])
        return node

    def visit_For(self, node: ast.For) -> ast.AST | list[ast.stmt]:
        """Turn `for x in range(a, b)` and `for x in y` into while loops, where nothing jumps."""
        self.generic_visit(node)
        jumps = any(isinstance(child, ast.Continue | ast.Break) for child in ast.walk(node))
        if node.orelse or jumps or not isinstance(node.target, ast.Name):
            return node
        index, items = self.fresh(), self.fresh()
        text = (
            f"{items} = list({ast.unparse(node.iter)})\n{index} = 0\n"
            f"while {index} < len({items}):\n    {node.target.id} = {items}[{index}]\n    {index} = {index} + 1\n"
        )
        made = ast.parse(text).body
        loop = made[-1]
        assert isinstance(loop, ast.While)
        loop.body += node.body
        return made

    def visit_Return(self, node: ast.Return) -> ast.AST | list[ast.stmt]:
        """Write a list comprehension out as a loop."""
        value = node.value
        if not (isinstance(value, ast.ListComp) and len(value.generators) == 1 and not value.generators[0].is_async):
            self.generic_visit(node)
            return node
        part, out = value.generators[0], self.fresh()
        inner = f"{out}.append({ast.unparse(value.elt)})"
        for test in reversed(part.ifs):
            inner = f"if {ast.unparse(test)}:\n{textwrap.indent(inner, '    ')}"
        loop = f"for {ast.unparse(part.target)} in {ast.unparse(part.iter)}:\n{textwrap.indent(inner, '    ')}"
        return [*ast.parse(f"{out} = []\n{loop}").body, ast.Return(value=ast.Name(id=out, ctx=ast.Load()))]


def rewritten(code: str, *, style: bool) -> str:
    """Return code with other names, and in another style."""
    tree = ast.parse(code)
    if style:
        tree = ast.fix_missing_locations(Restyle().visit(tree))
    return ast.unparse(ast.fix_missing_locations(Rename(tree).visit(tree)))


KINDS: dict[str, Callable[[str], str]] = {
    "copied": lambda code: code,
    "renamed": lambda code: rewritten(code, style=False),
    "restyled": lambda code: rewritten(code, style=True),
}


@dataclass(frozen=True, kw_only=True)
class Plant:
    """A record that should be found, and what speaks for it."""

    kind: str
    half: int
    ngrams: float
    solution: float
    form: float
    functional: bool
    statement: float


def plants(references: References, every: int) -> Iterator[tuple[int, str, Example]]:
    """Yield the plants with their problem's number."""
    chosen = [n for n, each in enumerate(references.all) if each.benchmark in ("humaneval", "mbpp")][::every]
    for number in chosen:
        problem = references.all[number].problem
        code = solution_of(problem)
        if parse(code) is None:
            continue
        for kind, rewrite in KINDS.items():
            statement = paraphrase(problem.stub, random.Random(f"{problem.task_id} {kind}"))
            yield number, kind, Example(instruction=statement, response=f"```python\n{rewrite(code)}\n```")


def observe(
    number: int, kind: str, half: int, record: Example, references: References, functional: Functional
) -> Plant:
    """Collect what speaks for a plant."""
    tree = parse(python_of(record))
    statement = references.statement_score(number, words_of(record.instruction))
    enough = references.all[number].asserts >= ENOUGH or statement >= HINT
    ngrams, solution = references.run_shares(runs_of(record)).get(number, (0.0, 0.0))
    return Plant(
        kind=kind,
        half=half,
        ngrams=ngrams,
        solution=solution,
        form=float(references.form_overlaps(units_of(tree) if tree else [])[number]),
        functional=enough and number in functional.passed(record),
        statement=statement,
    )


def found(plant: Plant, config: DecontaminateConfig, methods: str) -> bool:
    """Tell whether a plant is a leak by these methods alone."""
    by_words = "ngrams" in methods and plant.ngrams >= config.ngrams
    solved = (
        ("ngrams" in methods and plant.solution >= config.ngrams)
        or ("ast" in methods and plant.form >= config.ast)
        or ("functional" in methods and plant.functional)
    )
    return by_words or (solved and plant.statement >= config.statement)


def matched(plant: Plant, config: DecontaminateConfig) -> bool:
    """Tell whether a plant is a leak or common by all methods together."""
    return found(plant, config.model_copy(update={"statement": 1e-9}), "ngrams ast functional") or plant.functional


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
    for kind in (*KINDS, "all"):
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
    """Classify real records; print how many are flagged, write a sample of those."""
    source = CurateSource(path=path)
    records = [
        item
        for shard in plan_shards([source])
        for item in read_shard(shard, source, "pairs")
        if isinstance(item, Example)
    ][::every]
    lines: list[dict[str, object]] = []
    with track("real records", len(records)) as advance:
        for record in records:
            findings = classify(record, references, config, functional.passed(record))
            if kind := verdict(findings):
                what = [
                    f"{each.benchmark} {each.task} {each.kind} {','.join(each.methods)} {each.statement}"
                    for each in findings
                ]
                lines.append(
                    {"class": kind, "findings": what, "instruction": record.instruction, "response": record.response}
                )
            advance(1)
    leaks = sum(line["class"] == "leak" for line in lines)
    print(f"\n{path}: of {len(records)} records {leaks} are leaks and {len(lines) - leaks} common")
    sample = random.Random(0).sample(lines, min(200, len(lines)))
    Path("flags.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sample), encoding="utf-8")
    print(f"flags.jsonl: {len(sample)} of them, drawn at random, to be judged by a person")


def main() -> None:
    """Plant, look, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir")
    parser.add_argument("--every", type=int, default=1, help="use each n-th problem")
    parser.add_argument("--clean", help="JSONL of real pairs")
    parser.add_argument("--clean-every", type=int, default=1, help="use each n-th record of it")
    options = parser.parse_args()
    os.environ["XFT_DATA"] = options.data_dir
    config = DecontaminateConfig()
    references, faults = load_references(config)
    print(f"{len(references.all)} problems; not at hand: {', '.join(faults) or 'none'}")
    with Sandbox(libraries=LIBRARIES) as sandbox:
        functional = Functional(references, sandbox)
        planted = list(plants(references, options.every))
        seen, broken = [], 0
        order = {number: place for place, number in enumerate(dict.fromkeys(number for number, _, _ in planted))}
        with track("plants", len(planted)) as advance:
            for number, kind, record in planted:
                plant = observe(number, kind, order[number] % 2, record, references, functional)
                splits = any(number in numbers for numbers in functional.by_name.values())
                doubtful = splits and kind != "copied" and not plant.functional
                if doubtful and number not in functional.passed(record):
                    broken += 1
                else:
                    seen.append(plant)
                advance(1)
        print(f"{len(planted)} plants of {len(order)} problems, {broken} left out since their code no longer passes")
        report(seen, config)
        if options.clean:
            flags(options.clean, options.clean_every, references, functional, config)


if __name__ == "__main__":
    main()
