"""DS-1000 (Lai et al., 2022): data science with seven libraries, completion format, data of April 2024.

The answer is the code at `[insert]` in the benchmark's `exec_context`. The data come from the folder XFT_DATA when that
has them, else from the hub; the libraries from an environment of their own, `xft doctor --setup ds1000`.

The benchmark puts its tests, reference solution included, into the candidate's process, and an answer is at home there:
that a program reached its end is proved, that it got there honestly is not. docs/evaluation.md says what can be done.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from xft.errors import DataError
from xft.eval.benchmark import BENCHMARKS, Judgement, Problem, Request, Tool
from xft.eval.data import Rows, find_data, read_rows
from xft.eval.environment import contents_of, folder_of, lacking_of, python_of, versions_of
from xft.eval.extract import parse, segments
from xft.eval.functions import FENCE_STOP, judgement
from xft.eval.sandbox import Outcome, Sandbox
from xft.progress import track
from xft.prompts import PROMPTS

ENVIRONMENT = "ds1000"
FILE = "ds1000_test.jsonl"
HUB_NAME = "xlangai/DS-1000"
REFERENCES = "references.json"

DISTRIBUTIONS = {
    "Matplotlib": "matplotlib",
    "Numpy": "numpy",
    "Pandas": "pandas",
    "Pytorch": "torch",
    "Scipy": "scipy",
    "Sklearn": "scikit-learn",
    "Tensorflow": "tensorflow-cpu",
}
PRELOAD = (
    *("numpy", "pandas", "PIL.Image", "scipy.integrate", "scipy.interpolate", "scipy.optimize", "scipy.signal"),
    *("scipy.sparse", "scipy.spatial", "scipy.stats", "sklearn.datasets", "sklearn.ensemble", "sklearn.linear_model"),
    *("sklearn.model_selection", "sklearn.pipeline", "matplotlib.pyplot", "seaborn"),
    *("torch", "torch.distributed.tensor", "tensorflow"),  # the second is what torch imports when it compares
)

ENDS = ("</code>", "# SOLUTION END", "\nEND SOLUTION")
CLOSED = re.compile(r"(?<=\S)```")
"""A fence at the end of a line of code."""
PYTHON = re.compile(r"\W*(?:i?py|$)")
"""Labels of fences that may hold Python."""
FUNCTION = re.compile(r"^def (\w+)\(.*\n(?:(?!def ).*\n)*?\[insert\]", re.MULTILINE)
IN_FUNCTION = "### BEGIN SOLUTION"
OF_THE_ANSWER = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
"""What an answer may need before its function, unless the prompt has it; all else is the prompt's example."""
INSTRUCTION = (
    "Solve the following problem. Write only the Python code that belongs at [insert], indented as it must be there, "
    "and nothing that stands before it.\n\n{stub}\n[insert]"
)

BEGIN = """
def _begin():
    import os, random, sys, tempfile
    tempfile.tempdir = None
    data = os.path.join(sys.prefix, "seaborn-data")
    if os.path.isdir(data):
        os.environ["SEABORN_DATA"] = data
    os.environ.update(MPLBACKEND="Agg", LOKY_MAX_CPU_COUNT="1", TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="1")
    if "matplotlib" in sys.modules:
        sys.modules["matplotlib"].use("Agg")
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
_begin()
del _begin
"""
"""Comes before the benchmark's own program: one thread, no screen, the same random numbers each time.

Libraries that were loaded beforehand remember another place for temporary files than the candidate's own.
"""


class DS1000:
    """The benchmark, all seven libraries; `Problem.tool` is the library."""

    name = "ds1000"
    limits: Mapping[str, Any] = {"seconds": 120.0, "memory_mb": 4096}

    def problems(self) -> Sequence[Problem]:
        """Read all problems, in the benchmark's order.

        One whose reference solution is known to fail in the environment here has the tool `LIBRARY: references`.

        Raises:
            DataError: the data are missing or malformed.
        """
        data = _data()
        failing = _known_failures(data.digest)
        return [
            replace(problem, tool=f"{problem.tool}: references") if problem.task_id in failing else problem
            for problem in _read(data)
        ]

    def data_hash(self) -> str:
        """Return the sha256 of the data that `problems` reads."""
        return _data().digest

    def request(self, problem: Problem, style: str) -> Request:
        """Ask for the code at `[insert]`; in the style `completion` let the model continue the prompt.

        Raises:
            UnknownNameError: no such style.
        """
        if style == "completion":
            return Request(instruction=None, prefix=problem.stub, stop=ENDS)
        PROMPTS[style]
        return Request(
            instruction=INSTRUCTION.format(stub=problem.stub.rstrip("\n")), prefix="```python\n", stop=FENCE_STOP
        )

    def extract(self, problem: Problem, completion: str, style: str) -> str:
        """Return the code to insert, "" when there is none.

        A continuation of the prompt is cut as the benchmark's authors do. In a chat answer the fenced code is taken, a
        repeated prompt dropped, and a function written whole where its body is asked for becomes that body.
        """
        return _cut(completion) if style == "completion" else _from_chat(problem, completion)

    def assemble(self, problem: Problem, completion: str) -> str:
        """Return the code to insert of a raw completion that was made elsewhere, the prompt before it or not."""
        return _cut(completion.removeprefix(problem.stub))

    def sandbox(self, *, allow_unsafe: bool = False) -> Sandbox:
        """Return a sandbox with the environment's interpreter and its libraries loaded.

        Raises:
            DataError: the environment is not there.
        """
        return Sandbox(python=python_of(ENVIRONMENT), preload=PRELOAD, allow_unsafe=allow_unsafe)

    def tools(self, sandbox: Sandbox) -> Sequence[Tool]:
        """Let each library judge three reference solutions and an answer that does nothing.

        The first time in an environment all reference solutions are run, which takes minutes; those that fail make up
        the faulty tool `LIBRARY: references`.

        Raises:
            SandboxError: the sandbox failed; says nothing about the libraries.
        """
        data = _data()
        problems = _read(data)
        failing = self._failures(data.digest, problems, sandbox)
        versions = versions_of(ENVIRONMENT)
        tools = []
        for library in dict.fromkeys(problem.tool for problem in problems):
            own = [problem for problem in problems if problem.tool == library]
            sound = [problem for problem in own if problem.task_id not in failing]
            version = versions.get(DISTRIBUTIONS[library], "")
            tools.append(Tool(name=library, version=version, fault=self._fault(library, sound, sandbox)))
            if len(sound) < len(own):
                fault = f"{len(own) - len(sound)} of {len(own)} reference solutions fail in this environment: "
                fault += _said({each.task_id: failing[each.task_id] for each in own if each not in sound})
                tools.append(Tool(name=f"{library}: references", version=version, fault=fault))
        return tools

    def judge(self, problem: Problem, code: str, sandbox: Sandbox) -> Judgement:
        """Run the problem's tests on an answer; called from several threads at once.

        Raises:
            SandboxError: the sandbox failed; says nothing about the answer.
        """
        if not code.strip():
            return Judgement(status="failed", seconds=0.0, error="no code", in_process=True)
        end = self._run(problem, code, sandbox)
        return judgement(end, in_process=True)

    def program(self, problem: Problem, code: str) -> str:
        """Put the benchmark's own program around an answer, as its authors do."""
        context = problem.tests
        if not re.search(r"\[insert\]$", context, re.MULTILINE):
            code = code.rstrip()  # text follows on the same line
        string = "test_string(code)\n" if "test_string(" in context else ""
        return f"{BEGIN}{context}\ncode = {code!r}\ntest_execution(code)\n{string}"

    def _run(self, problem: Problem, code: str, sandbox: Sandbox) -> Outcome:
        program = self.program(problem, code)
        return sandbox.run(program, seconds=self.limits["seconds"], memory_mb=self.limits["memory_mb"])

    def _fault(self, library: str, sound: Sequence[Problem], sandbox: Sandbox) -> str:
        """Say what speaks against a library; "" when it proves itself."""
        again = f"set its environment up again: `xft doctor --setup {ENVIRONMENT}`"
        if not sound:
            return f"no reference solution for {library} passes; {again}"
        some = list(dict.fromkeys((sound[0], sound[len(sound) // 2], sound[-1])))
        for problem in some:
            end = self._run(problem, problem.canonical, sandbox)
            if end.status != "passed":
                return f"{problem.task_id}: the reference solution {end.status} ({end.error}); {again}"
        wrong = "    return None\n" if some[0].entry_point else "pass\n"
        if self._run(some[0], wrong, sandbox).status == "passed":
            return f"{some[0].task_id}: an answer that does nothing passed; {again}"
        return ""

    def _failures(self, data: str, problems: Sequence[Problem], sandbox: Sandbox) -> Mapping[str, str]:
        """Return each problem whose reference solution fails, and how; known from an earlier run where one is valid."""
        conditions = [contents_of(ENVIRONMENT), data, dict(self.limits), sandbox.level, BEGIN]
        key = hashlib.sha256(json.dumps(conditions).encode()).hexdigest()
        known = _remembered()
        if known.get("key") == key:
            found: Mapping[str, str] = known["failing"]
            return found
        workers = len(os.sched_getaffinity(0))
        with (
            track(f"{self.name} reference solutions, once", len(problems)) as advance,
            ThreadPoolExecutor(workers) as pool,
        ):

            def run(problem: Problem) -> Outcome:
                end = self._run(problem, problem.canonical, sandbox)
                advance(1)
                return end

            ends = list(pool.map(run, problems))
        for i, end in enumerate(ends):
            if end.status != "passed":  # alone, on a machine at rest
                ends[i] = self._run(problems[i], problems[i].canonical, sandbox)
        failing = {
            problem.task_id: end.error or end.status
            for problem, end in zip(problems, ends, strict=True)
            if end.status != "passed"
        }
        path = folder_of(ENVIRONMENT) / REFERENCES
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps({"key": key, "data": data, "failing": failing}, indent=1))
        partial.replace(path)
        return failing


def _said(failing: Mapping[str, str]) -> str:
    """Name failing reference solutions by what went wrong."""
    causes: dict[str, list[str]] = {}
    for task_id, error in failing.items():
        causes.setdefault(re.sub(r" \(line \d+\)$", "", error), []).append(task_id)
    said = "; ".join(f"{', '.join(tasks)} ({cause})" for cause, tasks in causes.items())
    if lacking := lacking_of(ENVIRONMENT):
        said += f"; `xft doctor --setup {ENVIRONMENT}` tries again to fetch what some may need: {', '.join(lacking)}"
    return said


# --- answers ----------------------------------------------------------------------------------------------------------


def _cut(text: str) -> str:
    """Cut a continuation of the prompt by the rules of the benchmark's authors."""
    for end in ENDS[:2]:
        text = text.split(end)[0]
    text = text.replace("```python", "").split("```")[0]
    return text.split(ENDS[2])[0].replace("<code>", "")


def _from_chat(problem: Problem, answer: str) -> str:
    """Find the code in a chat answer: the first stretch that is Python, else what looks most like the answer."""
    found = [(label, _trimmed(problem, text)) for label, text in segments(answer) if PYTHON.match(label)]
    written = [each for each in found if each[1].strip()]
    _, code = min(written, key=lambda each: 0 if _is_code(each[1]) else 2 - bool(each[0]), default=("", ""))
    return _body(problem, code) if problem.entry_point and code.strip() else code


def _trimmed(problem: Problem, text: str) -> str:
    """Return a stretch of an answer without the benchmark's marks and the prompt's own code."""
    code = CLOSED.split(text.removeprefix("\n"))[0].split("<code>", 1)[-1]
    for end in ENDS:
        code = code.split(end)[0]
    return _without_prompt(problem.stub, code)


def _is_code(text: str) -> bool:
    """Tell code from talk, of which a word or two can be Python too."""
    tree = parse(textwrap.dedent(text))
    return tree is not None and any(
        any(isinstance(each, ast.Call) for each in ast.walk(node))
        if isinstance(node, ast.Expr)
        else not (isinstance(node, ast.AnnAssign) and node.value is None)
        for node in tree.body
    )


def _without_prompt(stub: str, code: str) -> str:
    """Drop the prompt's own code where an answer repeats it first."""
    shown = stub.rsplit("<code>", 2)
    own = shown[-1] if IN_FUNCTION in shown[-1] or len(shown) == 1 else shown[-2].split("</code>")[0]
    for repeated in (own, own.split(IN_FUNCTION)[0], own.split("# SOLUTION START")[0]):
        head = repeated.strip()
        if head and code.lstrip().startswith(head):
            return code.lstrip()[len(head) :].lstrip("\n")
    return code


def _body(problem: Problem, code: str) -> str:
    """Return code as the body of a function, taken out of one that was written whole, indented where it is not."""
    text = textwrap.dedent(code).strip("\n") + "\n"
    tree = parse(text)
    if tree is None:
        return code
    for number, node in enumerate(tree.body):
        if isinstance(node, ast.FunctionDef) and node.name == problem.entry_point:
            node.decorator_list = []
            before = [each for each in tree.body[:number] if isinstance(each, OF_THE_ANSWER)]
            node.body = [*(each for each in before if ast.unparse(each) not in problem.stub), *node.body]
            return ast.unparse(node).split("\n", 1)[1] + "\n"
    return code if code.lstrip("\n").startswith((" ", "\t")) else textwrap.indent(text, "    ")


# --- data -------------------------------------------------------------------------------------------------------------


def _data() -> Rows:
    """Find the data in XFT_DATA, fetch them from the hub when they aren't there."""
    return read_rows(find_data(DS1000.name, [FILE], hub=HUB_NAME, patterns=["test.jsonl"], remedy=""))


def _read(data: Rows) -> list[Problem]:
    """Return the problems as the data have them."""
    return [_parsed(f"{data.where}: row {number}", row) for number, row in enumerate(data.rows, start=1)]


def _parsed(where: str, row: Any) -> Problem:
    try:
        context, library = str(row["code_context"]), str(row["metadata"]["library"])
        if "[insert]" not in context or "def test_execution(" not in context or library not in DISTRIBUTIONS:
            raise ValueError("code_context or library")
        function = FUNCTION.search(context) if str(row["prompt"]).rstrip().endswith(IN_FUNCTION) else None
        return Problem(
            task_id=f"DS-1000/{int(row['metadata']['problem_id'])}",
            stub=str(row["prompt"]),
            entry_point=function[1] if function else "",
            canonical=str(row["reference_code"]),
            tests=context,
            tool=library,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: not a DS-1000 problem in the format of April 2024: {error!r}") from None


def _remembered() -> dict[str, Any]:
    """Read what the last run of all reference solutions found; {} when there was none."""
    with contextlib.suppress(OSError, ValueError):
        known: dict[str, Any] = json.loads((folder_of(ENVIRONMENT) / REFERENCES).read_text())
        return known
    return {}


def _known_failures(data: str) -> Mapping[str, str]:
    """Return the failing reference solutions of these data, as far as they are known."""
    known = _remembered()
    failing: Mapping[str, str] = known["failing"] if known.get("data") == data and contents_of(ENVIRONMENT) else {}
    return failing


BENCHMARKS.register(DS1000.name)(DS1000())
