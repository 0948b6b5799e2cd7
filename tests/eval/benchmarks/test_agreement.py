"""Where verdicts differ from EvalPlus 0.3.1's, on purpose: one program for each class that the comparison found.

`benchmarks/evalplus_agreement.py` makes the comparison; what EvalPlus says here is what it said there.
"""

import pytest

from xft.errors import DataError, FetchError, SandboxError
from xft.eval.benchmarks import BENCHMARKS


@pytest.fixture(scope="module")
def sandbox():
    try:
        with BENCHMARKS["humaneval+"].sandbox() as sandbox:
            yield sandbox
    except SandboxError as error:
        pytest.skip(f"not run: {error}")


def judge(name, task_id, sandbox, program):
    benchmark = BENCHMARKS[name]
    try:
        problem = next(problem for problem in benchmark.problems() if problem.task_id == task_id)
    except (DataError, FetchError) as error:
        pytest.skip(f"not run: {name}: {error}")
    canonical = problem.stub + problem.canonical
    return benchmark.judge(problem, program.format(canonical=canonical, name=problem.entry_point), sandbox)


def test_a_right_solution_of_find_zero_passes(sandbox):
    """EvalPlus 0.3.1 fails every solution: its loop goes on before it notes that the input passed."""
    assert judge("humaneval+", "HumanEval/32", sandbox, "{canonical}").status == "passed"


def test_a_polynomial_that_was_emptied_has_no_zero(sandbox):
    """EvalPlus evaluates the polynomial that the candidate may have changed; the fault above hides it."""
    program = "def {name}(xs):\n    xs.clear()\n    return 0\n"
    verdict = judge("humaneval+", "HumanEval/32", sandbox, program)
    assert (verdict.status, dict(verdict.parts)) == ("wrong", {"base": False, "plus": False})


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
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize(("name", "task_id"), [("humaneval+", "HumanEval/12"), ("mbpp+", "Mbpp/2")])
def test_a_program_that_fools_a_grader_in_its_process_fails(sandbox, name, task_id, kind):
    """EvalPlus passes all of these."""
    verdict = judge(name, task_id, sandbox, HOSTILE[kind])
    assert verdict.status in ("wrong", "exited")
    assert dict(verdict.parts) == {"base": False, "plus": False}


@pytest.mark.parametrize("wrapper", ["iter(v)", "(x for x in v)", "dict.fromkeys(v).keys()", "set(v)"])
def test_an_iterator_is_no_set(sandbox, wrapper):
    """EvalPlus makes a set of whatever can be iterated over; here only plain data are looked into."""
    program = f"{{canonical}}\n\n_whole = {{name}}\ndef {{name}}(a):\n    v = _whole(a)\n    return {wrapper}\n"
    verdict = judge("mbpp+", "Mbpp/111", sandbox, program)
    assert verdict.status == ("passed" if wrapper == "set(v)" else "wrong")


def test_an_array_of_python_objects_is_opaque(sandbox):
    """EvalPlus finds an array that holds one dict, None or large int equal to what it holds."""
    program = "{canonical}\n\nimport numpy\n_whole = {name}\ndef {name}(v):\n    return numpy.array(_whole(v))\n"
    assert judge("mbpp+", "Mbpp/88", sandbox, program).status == "wrong"


@pytest.mark.parametrize("kind", ["Fraction", "Decimal", "numpy.int64", "bool"])
def test_numbers_of_other_kinds_are_equal_as_in_evalplus(sandbox, kind):
    program = (
        "{canonical}\n\nimport numpy\nfrom decimal import Decimal\nfrom fractions import Fraction\n_whole = {name}\n"
        f"def {{name}}(*arguments):\n    return {kind}(_whole(*arguments))\n"
    )
    verdict = judge("humaneval+", "HumanEval/60", sandbox, program)  # the sum of the numbers up to n
    assert (verdict.status == "passed") == (kind != "bool")
