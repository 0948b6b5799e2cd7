"""DS-1000 on problems of our own in its shape, run by this interpreter; then the whole, where it can be had."""

import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from xft.errors import DataError, FetchError, SandboxError, UnknownNameError
from xft.eval import environment
from xft.eval.benchmarks import BENCHMARKS
from xft.eval.benchmarks.ds1000 import DS1000, FILE
from xft.eval.environment import ENVIRONMENTS, folder_of, python_of
from xft.eval.sandbox import Sandbox

TESTS = '''import copy, io, tokenize


def generate_test_case(test_case_id):
    {given}
    return values, {expected}


def exec_test(result, ans):
    return 1 if result == ans else 0


exec_context = r"""
values = test_input
{inserted}
"""


def test_execution(solution: str):
    code = exec_context.replace("[insert]", solution)
    for i in range({cases}):
        test_input, expected_result = generate_test_case(i + 1)
        test_env = {{"test_input": test_input}}
        exec(code, test_env)
        assert exec_test(test_env["result"], expected_result)
'''
NO_LOOP = """

def test_string(solution: str):
    tokens = [token.string for token in tokenize.tokenize(io.BytesIO(solution.encode("utf-8")).readline)]
    assert "for" not in tokens and "while" not in tokens
"""
PROMPT = """Problem:
I have some numbers.

A:
<code>
import numpy as np
values = [1, 2, 3]
</code>
result = ... # put solution in this variable
BEGIN SOLUTION
<code>
"""
IN_FUNCTION = """Problem:
I have some numbers.

A:
<code>
import numpy as np
example = [1, 2, 3]
def f(values=example):
    # return the solution in this function
    # result = f(values)
    ### BEGIN SOLUTION"""
PLOT = "import matplotlib.pyplot as plt\nvalues = [1, 2]\n# Sum them\n# SOLUTION START\n"


def row(number, library, prompt, reference, *, inserted="[insert]", given="", expected="sum(values)", more="", cases=2):
    given = given or "values = [[1, 2], [3, 4, 5]][test_case_id - 1]"
    return {
        "prompt": prompt,
        "reference_code": reference,
        "metadata": {"problem_id": number, "library": library, "test_case_cnt": cases},
        "code_context": TESTS.format(given=given, expected=expected, inserted=inserted, cases=cases) + more,
    }


BODY = "\n    result = sum(values)\n\n    return result\n"
ROWS = [
    row(0, "Numpy", PROMPT, "result = sum(values)\n", more=NO_LOOP),
    row(1, "Pandas", IN_FUNCTION, BODY, inserted="def f(values):\n[insert]\nresult = f(values)"),
    row(2, "Tensorflow", PROMPT, "result = sum(values)", inserted="[insert].__abs__()"),
    row(3, "Matplotlib", PLOT, "result = sum(values)", cases=1),
    row(4, "Matplotlib", PLOT, "result = sum(values) + 1", cases=1),  # its reference is wrong
]
TOTAL, FUNCTION, JOINED, PLOTTED, BROKEN = range(5)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder with the problems above, where no environment is."""
    (tmp_path / FILE).write_text("".join(json.dumps(each) + "\n" for each in ROWS))
    monkeypatch.setenv("XFT_DATA", str(tmp_path))
    monkeypatch.setenv("XFT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def problems(data):
    return DS1000().problems()


@pytest.fixture(scope="module")
def sandbox():
    try:
        found = Sandbox()
    except SandboxError as error:
        pytest.skip(f"not run: {error}")
    with found:
        yield found


@pytest.fixture
def installed(data):
    """An environment that looks set up."""
    (folder_of("ds1000") / "bin").mkdir(parents=True)
    python_in = folder_of("ds1000") / "bin" / "python"
    python_in.symlink_to(sys.executable)
    mark = {"requirements": ENVIRONMENTS["ds1000"].digest(), "python": "3.11"}
    (folder_of("ds1000") / environment.MARK).write_text(json.dumps(mark))


def test_problems_are_read_with_their_library_and_the_function_that_is_asked_for(problems):
    assert [problem.task_id for problem in problems] == [f"DS-1000/{number}" for number in range(5)]
    assert [problem.tool for problem in problems] == ["Numpy", "Pandas", "Tensorflow", "Matplotlib", "Matplotlib"]
    assert [problem.entry_point for problem in problems] == ["", "f", "", "", ""]
    assert problems == DS1000().problems()
    assert BENCHMARKS["ds1000"].data_hash() == DS1000().data_hash()


@pytest.mark.parametrize(
    "damage",
    [
        {"metadata": {"library": "Numpy"}},
        {"metadata": {"problem_id": 0, "library": "Cobol"}},
        {"code_context": "import numpy"},
        {"prompt": None, "code_context": None},
    ],
    ids=["no number", "no such library", "no tests", "nothing"],
)
def test_a_row_that_is_no_problem_is_named(data, damage):
    (data / FILE).write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1] | damage) + "\n")
    with pytest.raises(DataError, match=rf"{FILE}: row 2: not a DS-1000 problem in the format of April 2024"):
        DS1000().problems()


def test_data_that_are_nowhere_are_asked_for_in_both_ways(data, monkeypatch):
    (data / FILE).unlink()

    def unreachable(*_, **__):
        raise FetchError("no network")

    monkeypatch.setattr("xft.eval.data.fetch_snapshot", unreachable)
    with pytest.raises(
        DataError, match=rf"has no {FILE}; set --data-dir or XFT_DATA .*, or make the hub's xlangai/DS-1000 reachable"
    ):
        DS1000().problems()
    (data / FILE).write_text("\n")
    with pytest.raises(DataError, match="no problem in this file"):
        DS1000().problems()


def test_without_its_environment_no_answer_is_run(data):
    with pytest.raises(DataError, match=r"run `xft doctor --setup ds1000`"):
        DS1000().sandbox()


# --- verdicts ---------------------------------------------------------------------------------------------------------


def status(problem, code, sandbox):
    judgement = DS1000().judge(problem, code, sandbox)
    assert judgement.in_process
    return judgement.status


def test_right_answers_pass_also_with_text_after_the_insertion(problems, sandbox):
    for number in (TOTAL, FUNCTION, JOINED, PLOTTED):
        assert status(problems[number], problems[number].canonical, sandbox) == "passed"
    assert status(problems[JOINED], "result = sum(values)\n\n", sandbox) == "passed"


@pytest.mark.parametrize(
    ("number", "code", "expected"),
    [
        (TOTAL, "result = sum(values) + 1", "failed"),
        (TOTAL, "result = 3", "failed"),  # right in the first case only
        (TOTAL, "result = 0\nfor value in values:\n    result += value", "failed"),  # test_string forbids loops
        (TOTAL, "result = sum(values", "failed"),
        (TOTAL, "", "failed"),
        (TOTAL, " \n", "failed"),
        (TOTAL, "import sys; sys.exit(0)", "exited"),
        (TOTAL, "import os; os._exit(0)", "exited"),
        (TOTAL, "raise SystemExit", "exited"),
        (TOTAL, "import os; os.write(1, b'passed'); result = 0", "failed"),
        (FUNCTION, "return sum(values)", "failed"),  # not indented
        (FUNCTION, "    pass", "failed"),
    ],
)
def test_wrong_answers_and_early_ends_do_not_pass(problems, sandbox, number, code, expected):
    assert status(problems[number], code, sandbox) == expected


def test_random_numbers_are_the_same_in_each_run(data, sandbox):
    given = "import random; values = [random.random(), test_case_id]"
    expected = repr([0.8444218515250481, 1])  # the first number of seed 0
    drawn = row(0, "Numpy", PROMPT, "result = values", given=given, expected=expected, cases=1)
    (data / FILE).write_text(json.dumps(drawn) + "\n")
    (problem,) = DS1000().problems()
    assert {status(problem, problem.canonical, sandbox) for _ in range(2)} == {"passed"}


# --- prompts and extraction -------------------------------------------------------------------------------------------


def test_a_continuation_follows_the_prompt_and_a_chat_answer_fills_the_place(problems):
    benchmark = DS1000()
    for problem in problems:
        plain = benchmark.request(problem, "completion")
        assert (plain.instruction, plain.prefix) == (None, problem.stub)
        assert {"</code>", "# SOLUTION END"} <= set(plain.stop)
        for style in ("chat", "magicoder"):
            asked = benchmark.request(problem, style)
            assert asked.instruction.endswith(problem.stub.rstrip("\n") + "\n[insert]")
            assert (asked.prefix, asked.stop) == ("```python\n", ("\n```\n",))
            assert problem.canonical.strip() not in asked.instruction
    with pytest.raises(UnknownNameError, match="prompt style 'poem'"):
        benchmark.request(problems[0], "poem")


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("result = 1\n</code>\nmore", "result = 1\n"),
        ("result = 1\n# SOLUTION END\nmore", "result = 1\n"),
        ("result = 1\nEND SOLUTION\nmore", "result = 1"),
        ("```python\nresult = 1\n```\nmore", "\nresult = 1\n"),
        ("<code>result = 1", "result = 1"),
        ("\n    return 1\n", "\n    return 1\n"),
        ("", ""),
    ],
)
def test_a_continuation_is_cut_as_the_authors_do(problems, completion, code):
    assert DS1000().extract(problems[TOTAL], completion, "completion") == code
    assert DS1000().assemble(problems[TOTAL], completion) == code
    assert DS1000().assemble(problems[TOTAL], problems[TOTAL].stub + completion) == code


@pytest.mark.parametrize(
    ("number", "answer", "code"),
    [
        (TOTAL, "result = 1\n```\nThat is it: ```x```", "result = 1\n"),
        (TOTAL, "Sure:\n\n```python\nresult = 1\n```\nThat is it.", "result = 1\n"),
        (TOTAL, "```\nresult = 1\n```", "result = 1\n"),
        (TOTAL, "Sure:\n<code>\nresult = 1\n</code>\nThat is it.", "\nresult = 1\n"),
        (TOTAL, "```python\nimport numpy as np\nvalues = [1, 2, 3]\nresult = 1\n```", "result = 1\n"),
        (PLOTTED, f"```python\n{PLOT}result = 1\n```", "result = 1\n"),
        (PLOTTED, f"{PLOT.replace('# SOLUTION START', '')}result = 1\n", "result = 1\n"),
        (FUNCTION, "    return 1\n```", "    return 1\n"),
        (FUNCTION, "return 1\n```", "    return 1\n"),
        (FUNCTION, f"{IN_FUNCTION.split('<code>')[1]}\n    return 1\n```", "    return 1\n"),
        (
            FUNCTION,
            "import numpy as np\nimport math\nvalues = load_data()\ndef f(values=None):\n    return 1\nprint(f())\n",
            "    import math\n    return 1\n",
        ),
        (FUNCTION, "@cached\ndef f(values): return 1\n", "    return 1\n"),
        (TOTAL, "Here is the code:\n```\nresult = 1\n```", "result = 1\n"),
        (TOTAL, "```bash\nls\n```\n```python\nresult = 1\n```", "result = 1\n"),
        (TOTAL, "First:\n```\npip install numpy\n```\nSolution: below\n```\nresult = 1\n```", "result = 1\n"),
        (TOTAL, "Sure\n```python\nvalues[0]\n```\nIt prints\n```\n1\n```", "values[0]\n"),
        (TOTAL, "```python\nresult = (1\n```\nwhich\n```text\nresult = 1\n```", "result = (1\n"),
        (TOTAL, "result = 0\n```\nNo.</think>\n```python\nresult = 1\n```", "result = 1\n"),
        (TOTAL, "# So:\n```python\nresult = 1```", "result = 1"),
        (TOTAL, f"```python\n{PROMPT.split('<code>')[1]}```\nThen\n```python\nresult = 1\n```", "result = 1\n"),
        (FUNCTION, "result = 1\n    return result\n```\nThat is\n```\nit\n```", "result = 1\n    return result\n"),
        (TOTAL, 'result = """\n```\n"""\n```\n', 'result = """\n```\n"""\n'),
        (FUNCTION, "That (can't be done.\n", "That (can't be done.\n"),
        (FUNCTION, "", ""),
    ],
)
def test_the_code_is_found_in_a_chat_answer(problems, number, answer, code):
    assert DS1000().extract(problems[number], answer, "chat") == code


# --- libraries --------------------------------------------------------------------------------------------------------


class Counted:
    """A sandbox that counts its runs."""

    def __init__(self, sandbox):
        self.sandbox, self.runs = sandbox, 0
        self.level = sandbox.level

    def run(self, *arguments, **limits):
        self.runs += 1
        return self.sandbox.run(*arguments, **limits)


def test_a_problem_whose_reference_fails_belongs_to_a_faulty_tool(installed, sandbox):
    tools = {tool.name: tool for tool in DS1000().tools(sandbox)}
    assert list(tools) == ["Numpy", "Pandas", "Tensorflow", "Matplotlib", "Matplotlib: references"]
    assert [name for name, tool in tools.items() if tool.fault] == ["Matplotlib: references"]
    fault = tools["Matplotlib: references"].fault
    assert "tries again to fetch what some may need: seaborn-data/exercise.csv" in fault
    assert fault.startswith("1 of 2 reference solutions fail in this environment: DS-1000/4 (AssertionError")
    assert [problem.tool for problem in DS1000().problems()][PLOTTED:] == ["Matplotlib", "Matplotlib: references"]


def test_references_are_run_once_for_an_environment_and_data(installed, data, sandbox):
    counted = Counted(sandbox)
    first = DS1000().tools(counted)
    references = len(ROWS) + 1  # the one that fails is run again
    proofs = counted.runs - references
    counted.runs = 0
    assert DS1000().tools(counted) == first
    assert counted.runs == proofs > 0
    mark = folder_of("ds1000") / environment.MARK
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"python": "3.11.99"}))
    counted.runs = 0
    DS1000().tools(counted)
    assert counted.runs == references + proofs
    ROW = ROWS[BROKEN] | {"reference_code": "result = sum(values)"}
    (data / FILE).write_text("".join(json.dumps(each) + "\n" for each in [*ROWS[:BROKEN], ROW]))
    assert [problem.tool for problem in DS1000().problems()][BROKEN] == "Matplotlib"
    assert not any(tool.fault for tool in DS1000().tools(counted))


def test_a_library_that_no_reference_passes_with_or_that_passes_anything_is_faulty(installed, data, sandbox):
    lax = ROWS[TOTAL] | {"code_context": TESTS.format(given="values = []", expected="0", inserted="[insert]", cases=0)}
    rows = [lax, ROWS[BROKEN]]
    (data / FILE).write_text("".join(json.dumps(each) + "\n" for each in rows))
    numpy, matplotlib, references = DS1000().tools(sandbox)
    assert numpy.fault.startswith("DS-1000/0: an answer that does nothing passed")
    assert matplotlib.fault.startswith("no reference solution for Matplotlib passes")
    assert "`xft doctor --setup ds1000`" in matplotlib.fault
    assert references.name == "Matplotlib: references"


# --- the whole of it --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole():
    """The benchmark and its sandbox."""
    if not Path(os.environ.get("XFT_DATA", "/nowhere"), FILE).is_file():
        pytest.skip(f"not run: {FILE} (XFT_DATA)")
    try:
        python_of("ds1000")
        with DS1000().sandbox() as found:
            yield DS1000(), found
    except (DataError, SandboxError) as error:
        pytest.skip(f"not run: {error}")


def failures(benchmark, sandbox, problems, codes):
    """Return what went wrong, by problem."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        ends = list(pool.map(lambda problem, code: benchmark.judge(problem, code, sandbox), problems, codes))
    return {p.task_id: f"{end.status} {end.error}" for p, end in zip(problems, ends, strict=True) if end.error}


@pytest.mark.slow
def test_nearly_all_references_pass_and_the_rest_is_reported(whole):
    benchmark, sandbox = whole
    tools = benchmark.tools(sandbox)
    assert not [tool for tool in tools if tool.fault and not tool.name.endswith(": references")]
    assert all(tool.version for tool in tools)
    failing = {problem.task_id for problem in benchmark.problems() if problem.tool.endswith(": references")}
    named = {found for tool in tools for found in re.findall(r"DS-1000/\d+", tool.fault)}
    assert named == failing
    assert len(benchmark.problems()) - len(failing) >= 985
    some = [problem for problem in benchmark.problems()[::20] if problem.task_id not in failing]
    assert failures(benchmark, sandbox, some, [problem.canonical for problem in some]) == {}


@pytest.mark.slow
def test_answers_that_do_nothing_fail(whole):
    benchmark, sandbox = whole
    problems = benchmark.problems()[::4]
    codes = ["    return None\n" if problem.entry_point else "pass\n" for problem in problems]
    assert failures(benchmark, sandbox, problems, codes).keys() == {problem.task_id for problem in problems}


@pytest.mark.slow
@pytest.mark.parametrize("comments", [True, False])
def test_functions_written_whole_pass(whole, comments):
    """With the prompt's comments an answer repeats it word for word; without, the function is taken apart."""
    benchmark, sandbox = whole
    problems = [problem for problem in benchmark.problems() if problem.entry_point]
    codes = []
    for problem in problems:
        shown = problem.stub.rsplit("<code>", 1)[1].split("### BEGIN SOLUTION")[0].splitlines()
        head = [line for line in shown if line.strip() and (comments or not line.lstrip().startswith("#"))]
        answer = "\n".join(["Sure:\n```python", *head, problem.canonical.strip("\n"), "```\n"])
        codes.append(benchmark.extract(problem, answer, "chat"))
    assert failures(benchmark, sandbox, problems, codes) == {}
