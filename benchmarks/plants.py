"""Training pairs that hold a benchmark's problem in other words and in other code, by rules or by a teacher."""

from __future__ import annotations

import ast
import random
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from xft.curate.contamination import References, solution_of
from xft.data.example import Example
from xft.eval.benchmark import Request
from xft.eval.extract import parse
from xft.eval.generate import Sampling
from xft.progress import track
from xft.synth.task import Question
from xft.synth.teacher import Teacher

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


class Planted(NamedTuple):
    """A pair made of a problem."""

    number: int
    kind: str
    record: Example


def chosen(references: References, every: int) -> list[int]:
    """Return each n-th problem of HumanEval and MBPP that has a Python solution."""
    known = [number for number, each in enumerate(references.all) if each.benchmark in ("humaneval", "mbpp")]
    return [number for number in known[::every] if parse(solution_of(references.all[number].problem)) is not None]


def by_rules(references: References, numbers: Sequence[int]) -> Iterator[Planted]:
    """Yield each problem in all kinds."""
    for number in numbers:
        problem = references.all[number].problem
        for kind, rewrite in KINDS.items():
            statement = paraphrase(problem.stub, random.Random(f"{problem.task_id} {kind}"))
            code = rewrite(solution_of(problem))
            yield Planted(number, kind, Example(instruction=statement, response=f"```python\n{code}\n```"))


# --- a teacher's ------------------------------------------------------------------------------------------------------

REWORD = """\
Write the programming task below in your own words: another beginning, other verbs and nouns, the details in another
order. It must ask for exactly the same. Name no function, give no example, write no code. Answer with the task alone.

{0}"""
REWRITE = """\
Rewrite the Python program below so that nobody recognises it. It must return exactly the same results for the same
arguments in the same order. Give functions, arguments and variables other names, put statements in another order where
that changes nothing, and write it in another style: comprehensions or built-in functions instead of loops or the
reverse, other conditions, helper functions or none. No comments. Answer with the program alone, in one code block.

```python
{0}
```"""
WORDS, CODE = Sampling(max_new_tokens=160), Sampling(max_new_tokens=320)


def undocumented(code: str) -> str:
    """Return code without docstrings and comments."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def by_teacher(references: References, numbers: Sequence[int], teacher: Teacher) -> Iterator[Planted]:
    """Yield each problem as a teacher words and solves it; an answer that was cut off is kept as far as it goes."""

    def question(instruction: str, sampling: Sampling) -> Question:
        return Question(request=Request(instruction=instruction, prefix="", stop=()), sampling=sampling)

    problems = [references.all[number].problem for number in numbers]
    words = [question(REWORD.format(description(problem.stub)), WORDS) for problem in problems]
    code = [question(REWRITE.format(undocumented(solution_of(problem))), CODE) for problem in problems]
    with track("answers", 2 * len(numbers)) as advance:
        answers = teacher.answer([*words, *code], told=lambda: advance(1))
    for number, worded, solved in zip(numbers, answers, answers[len(numbers) :], strict=False):
        yield Planted(number, "rewritten", Example(instruction=worded.text.strip(), response=solved.text))
