"""Calls of a candidate's function, judged here while it runs."""

import os
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from levels import LEVELS, open_box

from xft.eval.sandbox import Call, Outcome, Returned, Sandbox, server

pytestmark = pytest.mark.sampled


@pytest.fixture(params=LEVELS, scope="module")
def box(request):
    with open_box(request.param) as opened:
        yield opened


def call(box: Sandbox, code: str, arguments, expected=None, *, seconds=5.0, reply_bytes=1 << 20, judge=None) -> Outcome:
    """Call f with one tuple after the other; `expected` has what each should return."""

    def compare(index: int, returned: Returned) -> str | None:
        return None if expected is None or returned.value == expected[index] else f"got {returned.value!r}"

    calls = [Call(arguments=each, seconds=seconds, reply_bytes=reply_bytes) for each in arguments]
    return box.call(textwrap.dedent(code), "f", calls, judge or compare, memory_mb=512)


def test_right_answers_pass(box):
    outcome = call(box, "def f(x, y=2): return {x: [y]}", [(1,), ("a", None)], [{1: [2]}, {"a": [None]}])
    assert (outcome.status, outcome.error, outcome.at, outcome.strained) == ("passed", "", -1, False)


def test_the_first_wrong_answer_ends_it(box):
    judged = []

    def judge(index: int, returned: Returned) -> str | None:
        judged.append(index)
        return None if returned.value < 30 else "too\x1b many"

    outcome = call(box, "def f(x): return x", [(n,) for n in range(1000)], judge=judge)
    assert (outcome.status, outcome.error, outcome.at) == ("wrong", "too many", 30)
    assert judged == list(range(31))


@pytest.mark.parametrize(
    ("code", "status", "error", "at"),
    [
        ("def f(x): return 1 // x", "failed", "ZeroDivisionError: integer division or modulo by zero (line 1)", 2),
        ("f = 1", "failed", "TypeError: 'int' object is not callable", 0),
        ("def g(x): pass", "failed", "NameError: f is not defined", -1),
        ("x = 1\n1 / 0", "failed", "ZeroDivisionError: division by zero (line 2)", -1),
        ("def f(:", "failed", "SyntaxError: invalid syntax (<candidate>, line 1)", -1),
        ("def f(x): raise SystemExit(0)", "exited", "SystemExit before the end", 0),
        ("raise SystemExit", "exited", "SystemExit before the end", -1),
        ("import os\ndef f(x): os._exit(0)", "exited", "ended with code 0 before the end", 0),
        ("import os\nos._exit(7)", "exited", "ended with code 7 before the end", -1),
        ("import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGKILL)", "exited", "killed by SIGKILL", 0),
        ("def f(x): return [0] * 10**10", "memory", "MemoryError", 0),
        ("def f(x): return f(x)", "failed", None, 0),
    ],
)
def test_how_it_fails_and_where(box, code, status, error, at):
    outcome = call(box, code, [(2,), (1,), (0,)])
    assert (outcome.status, outcome.at) == (status, at)
    assert error is None or outcome.error == error


def test_each_call_has_its_own_clock(box):
    code = "import time\ndef f(x): time.sleep(x)"
    assert call(box, code, [(0.2,)] * 5, seconds=0.6).status == "passed"
    outcome = call(box, code, [(0,), (0.2,), (9,), (0,)], seconds=0.6)
    assert (outcome.status, outcome.at, outcome.strained) == ("timeout", 2, True)
    assert 0.7 < outcome.seconds < 2


def test_a_failure_near_the_limit_is_strained(box):
    code = "import time\ndef f(x): time.sleep(x); assert False"
    assert call(box, code, [(0.55,)], seconds=0.6).strained
    assert not call(box, code, [(0.1,)], seconds=0.6).strained


def test_time_spent_judging_is_not_the_candidates(box):
    def judge(index: int, returned: Returned) -> None:
        time.sleep(0.3)

    assert call(box, "def f(x): return x", [(1,)] * 3, seconds=0.25, judge=judge).status == "passed"


def test_carrying_large_values_is_not_the_candidates_time(box):
    data = [[number] for number in range(50_000)]
    outcome = call(box, "def f(x): return x", [(data,)], [data], seconds=0.04, reply_bytes=1 << 24)
    assert outcome.status == "passed"
    assert outcome.seconds > 0.05


@pytest.mark.parametrize("code", ["def f(x): return 'x' * x", "def f(x): return [[[]]] * x"], ids=["text", "lists"])
def test_too_long_an_answer_is_wrong(box, code):
    outcome = call(box, code, [(1,), (10**5,), (1,)], reply_bytes=10_000)
    assert (outcome.status, outcome.error, outcome.at) == ("wrong", "too long an answer", 1)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ("b'v' + struct.pack('=I', 1 << 31)", "wrong"),
        ("b'v' + struct.pack('=I', 1) + b'['", "wrong"),
        ("b'v' + struct.pack('=I', 5) + b'1[1]x'", "wrong"),
        ("b'v' + struct.pack('=I', 50000) + b'[' * 50000", "wrong"),
        ("b'p' + struct.pack('=I', 16) + bytes(16)", "exited"),
        ("b'c' + struct.pack('=I', 0)", "exited"),
        ("b'e' + struct.pack('=I', 3) + b'abc'", "exited"),
        ("b'\\xff' * 1000000", "wrong"),
        ("b'v'", "timeout"),
        ("b''", "timeout"),
    ],
)
def test_forged_messages_never_pass(box, data, status):
    code = f"import os, struct, time\ndef f(x):\n    os.write(4, {data})\n    time.sleep(9)"
    outcome = call(box, code, [(1,), (2,)], [1, 2], seconds=0.3)
    assert outcome.status == status


def test_an_answer_that_floods_in_small_pieces_ends_at_the_first(box):
    code = "import os, struct\ndef f(x):\n    while True: os.write(4, b'v' + struct.pack('=I', 2) + b'1x')"
    assert call(box, code, [(1,)] * 3, [1, 2, 3]).status == "wrong"


def test_a_candidate_that_reads_nothing_more_is_out_of_time(box):
    code = "import os, time\ndef f(x):\n    os.close(3)\n    time.sleep(9)"
    assert call(box, code, [("x" * 10**6,)] * 5, seconds=0.4).status == "timeout"


def test_no_calls_pass_when_the_code_runs(box):
    assert call(box, "def f(): pass", []).status == "passed"
    assert call(box, "1 / 0", []).status == "failed"


@pytest.mark.parametrize("error", [KeyError, OSError])
def test_a_judge_that_raises_ends_the_call_and_not_the_sandbox(box, error):
    def judge(index: int, returned: Returned) -> None:
        raise error("oracle")

    with pytest.raises(error, match="oracle"):
        call(box, "def f(x): return x", [(1,)] * 100, judge=judge)
    assert call(box, "def f(x): return x", [(1,)], [1]).status == "passed"


def test_threads_each_have_a_server(box):
    def work(number: int) -> str:
        return call(box, "def f(x): return x", [(number,)] * 20, [number] * 20).status

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(work, range(12))) == {"passed"}
    assert 1 <= len(box._idle) <= 4


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_thousands_of_candidates_leave_nothing(level, tmp_path, monkeypatch):
    monkeypatch.setattr(server.tempfile, "tempdir", str(tmp_path))

    def footprint() -> tuple[int, int, int]:
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1])
        return resident, len(os.listdir("/proc/self/fd")), len(list(tmp_path.rglob("*")))

    with open_box(level) as box:

        def some(count: int) -> None:
            for number in range(count):
                assert call(box, "def f(x): return x", [(number,)], [number]).status == "passed"

        some(200)
        pages, *others = footprint()
        some(1500)
        pages_after, *others_after = footprint()
    assert pages_after - pages < 256
    assert others_after == others
