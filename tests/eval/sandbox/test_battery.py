"""Hostile programs against every level: none passes, none breaks the sandbox, none leaves anything behind.

The programs are in `hostile.py`. By default the strongest level here meets those that end by themselves; the loops and
the weaker levels are slow tests.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hostile import FIND, FORGE, FORGED, FUNCTIONS, LEAVE, MARK, ODDITIES, SEARCHES, SPRAY, TRICKS, Trick
from levels import LEVELS, open_box

from xft.eval.sandbox import Call, Outcome, Returned, Sandbox, Step, follow

slow = pytest.mark.slow
SLACK_S = 10.0
"""What a run may take beyond its limits, on a busy machine."""
RIGHT = "\ndef f(x): return x + 1\n"
WRONG = "\ndef f(x): return x - 1\n"


@pytest.fixture(scope="module")
def boxes() -> Iterator[Callable[[str], Sandbox]]:
    """Sandboxes that stay open for all tests here: what one program does to a warm server, the next would feel."""
    with contextlib.ExitStack() as stack:
        opened: dict[str, Sandbox] = {}

        def get(level: str) -> Sandbox:
            if level not in opened:
                opened[level] = stack.enter_context(open_box(level))
                opened[level].run("", seconds=60, memory_mb=512)  # to start a server is in no test's time
            return opened[level]

        yield get


def plus_one(index: int, returned: Returned) -> str | None:
    """Judge the answers to 1 and 2."""
    value = returned.value
    return None if type(value) is int and value == index + 2 else "wrong"


def call(box: Sandbox, code: str, judge=plus_one, *, seconds=5.0, memory_mb=512, arguments=(1, 2)) -> Outcome:
    """Call `f` of the code; the code itself gets as long as a call, so that endless code costs little."""
    calls = [Call(arguments=(each,), seconds=seconds, reply_bytes=1 << 20) for each in arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(follow, "CODE_S", seconds)
        return box.call(code, "f", calls, judge, memory_mb=memory_mb)


def bounded(work: Callable[[], Outcome], seconds: float, slack: float = SLACK_S) -> Outcome:
    """Return the outcome of work that must end within its limits."""
    began = time.monotonic()
    outcome = work()
    assert time.monotonic() - began < seconds + slack
    assert outcome.error.isprintable()
    assert len(outcome.error) <= 400
    return outcome


QUICK = {
    *("sys.exit(0)", "os._exit(0)", "raise SystemExit", "prints the marker", "closes every descriptor", "loops"),
    *("eats all that it was sent", "loops in C: product", "memory bit by bit", "deep recursion", "200 processes"),
    *("text of a huge integer", "empties every dictionary", "changes os.write", "traces", "a forked copy goes on"),
    *("equal to everything", "an integer with lying methods", "an object that raises at every touch", "a generator"),
    *("a list that iterates over other things", "a small list with a huge text", "rewrites the small integers"),
    *("verdict", "half a message", "a flood"),
    *("chatty", "standard descriptors closed", "a thread for ever", "another environment", "names of the runner"),
}
"""The programs that meet the strongest level in every test run; the rest, and the weaker levels, are slow tests."""


def case(level: str, name: str, *values: object) -> object:
    """Return parameters: the level, then the values."""
    quick = level == LEVELS[0] and name in QUICK
    return pytest.param(level, *values, id=f"{level}-{name}", marks=[] if quick else [slow])


def cases(table: dict[str, Trick]) -> list[object]:
    """Return parameters: a level, a trick that may be tried there."""
    return [
        case(level, name, trick) for level in LEVELS for name, trick in table.items() if level not in trick.never_at
    ]


levels = pytest.mark.parametrize("level", LEVELS)
confined = pytest.mark.parametrize("level", LEVELS[:2])
thorough = pytest.mark.parametrize("level", [LEVELS[0], *(pytest.param(level, marks=slow) for level in LEVELS[1:])])


# --- verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "trick"), cases(TRICKS))
def test_a_wrong_program_does_not_pass(boxes, level, trick):
    program = trick.code + "\nassert False, 'reached'\n"
    box = boxes(level)
    outcome = bounded(lambda: box.run(program, seconds=trick.seconds, memory_mb=trick.memory_mb), trick.seconds)
    assert outcome.status != "passed"
    assert trick.run is None or outcome.status in trick.run, outcome


@pytest.mark.parametrize(("level", "trick"), cases(TRICKS))
def test_a_wrong_function_does_not_pass(boxes, level, trick):
    box = boxes(level)
    work = lambda: call(box, trick.code + WRONG, seconds=trick.seconds, memory_mb=trick.memory_mb)  # noqa: E731
    outcome = bounded(work, 2 * trick.seconds)
    allowed = trick.call or trick.run
    assert outcome.status != "passed"
    assert allowed is None or outcome.status in allowed, outcome


@pytest.mark.parametrize(("level", "trick"), cases(FUNCTIONS))
def test_a_lying_function_does_not_pass(boxes, level, trick):
    box = boxes(level)
    work = lambda: call(box, trick.code, seconds=trick.seconds, memory_mb=trick.memory_mb)  # noqa: E731
    outcome = bounded(work, 2 * trick.seconds)
    assert outcome.status in trick.call, outcome


@pytest.mark.parametrize(
    ("level", "data"), [case(level, name, data) for level in LEVELS for name, data in FORGED.items()]
)
@pytest.mark.parametrize("leave", ["", "os._exit(0)"], ids=["goes on", "leaves"])
def test_forged_reports_prove_nothing(boxes, level, data, leave):
    box = boxes(level)
    program = SPRAY.format(data=data) + leave + "\nassert False"
    assert bounded(lambda: box.run(program, seconds=2, memory_mb=512), 2).status != "passed"
    work = lambda: call(box, SPRAY.format(data=data) + leave + WRONG, seconds=1)  # noqa: E731
    assert bounded(work, 2).status != "passed"
    inside = f"def f(x):\n{textwrap.indent(SPRAY.format(data=data) + leave, '    ')}\n    return x - 1"
    assert bounded(lambda: call(box, inside, seconds=1), 2).status != "passed"


@thorough
@pytest.mark.parametrize("name", SEARCHES)
def test_searching_the_process_gains_nothing_where_functions_are_called(boxes, level, name):
    code = textwrap.dedent(SEARCHES[name]) + FORGE
    assert call(boxes(level), code + WRONG).status != "passed"
    inside = f"def f(x):\n{textwrap.indent(code, '    ')}\n    return x - 1"
    assert call(boxes(level), inside).status != "passed"


def test_walking_frames_can_pass_where_tests_are_in_the_program(boxes):
    """Documented as remaining: once this fails, the documentation of `run` can promise more."""
    program = textwrap.dedent(SEARCHES["frames"]) + FORGE
    assert boxes(LEVELS[0]).run(program, seconds=5, memory_mb=512).status == "passed"


@pytest.mark.parametrize(("level", "name"), [case(level, name, name) for level in LEVELS for name in ODDITIES])
def test_a_right_program_passes_whatever_it_does_besides(boxes, level, name):
    box = boxes(level)
    began = time.monotonic()
    outcome = box.run(ODDITIES[name] + "\nif 1 + 1 != 2: raise ValueError\n", seconds=10, memory_mb=1024)
    assert (outcome.status, outcome.error) == ("passed", "")
    outcome = call(box, ODDITIES[name] + RIGHT, seconds=10, memory_mb=1024)
    assert (outcome.status, outcome.error) == ("passed", "")
    assert time.monotonic() - began < SLACK_S


# --- the wire ---------------------------------------------------------------------------------------------------------


@thorough
def test_the_process_never_holds_an_expected_value(boxes, level):
    """Its whole memory is searched; that it finds an argument proves the search."""
    sentinel, known = f"xft-sentinel-{secrets.token_hex(16)}", f"xft-argument-{secrets.token_hex(16)}"
    code = r"""
        import gc, re
        PATTERN = re.compile(rb'xft\x2d(?:sentinel|argument)\x2d[0-9a-f]{32}')
        def f(argument):
            found = set()
            with open('/proc/self/maps') as maps, open('/proc/self/mem', 'rb', 0) as memory:
                for line in maps:
                    span, rights, *_ = line.split()
                    start, end = (int(part, 16) for part in span.split('-'))
                    if rights.startswith('r') and end - start < 1 << 28:
                        try:
                            memory.seek(start)
                            found.update(PATTERN.findall(memory.read(end - start)))
                        except (OSError, ValueError): pass
            for each in gc.get_objects(): found.update(PATTERN.findall(repr(each).encode('utf-8', 'replace')))
            return sorted(each.decode() for each in found)
        """
    seen: list[object] = []

    def judge(index: int, returned: Returned) -> str | None:
        seen.append(returned.value)
        return None if returned.value != sentinel else "wrong"

    outcome = call(boxes(level), textwrap.dedent(code), judge, arguments=(known, known), seconds=20)
    assert outcome.status == "passed", outcome
    for found in seen:
        assert known in found
        assert sentinel not in found


@slow
@levels
@pytest.mark.parametrize(
    ("body", "statuses"),
    [
        ("while True: os.write(fd, b' '); time.sleep(0.02)", {"timeout", "wrong"}),
        ("os.write(fd, (1000).to_bytes(8, 'little')); time.sleep(60)", {"timeout", "wrong", "exited"}),
        ("os.write(fd, b'v' + (1000).to_bytes(4, 'little') + b'{'); time.sleep(60)", {"timeout", "wrong", "exited"}),
        (
            "os.write(fd, b'v' + (1000000).to_bytes(4, 'little'))\n                    while True: os.write(fd, b'x')",
            {"timeout", "wrong", "exited"},
        ),
        ("while True: os.write(fd, b'b' + bytes(4)); time.sleep(0.01)", {"timeout", "wrong", "exited"}),
        ("while True: os.write(fd, b'c' + bytes(4)); time.sleep(0.01)", {"timeout", "wrong", "exited"}),
        ("while True: os.write(fd, b'x' * 65536)", {"wrong", "timeout"}),
        ("os.close(fd); time.sleep(60)", {"timeout", "exited", "wrong"}),
    ],
    ids=[
        "drips",
        "a huge message",
        "half a message",
        "in single bytes",
        "begun for ever",
        "ready for ever",
        "a flood",
        "closed",
    ],
)
def test_an_answer_that_does_not_end_ends(boxes, level, body, statuses):
    code = f"""
        import os, time
        def f(x):
            fds = []
            for fd in range(3, 64):
                try:
                    os.set_blocking(fd, True); os.write(fd, b'')
                except OSError: continue
                fds.append(fd)
            import threading
            def talk(fd):
                try:
                    {body}
                except OSError: pass
            threads = [threading.Thread(target=talk, args=(fd,)) for fd in fds]
            for each in threads: each.start()
            time.sleep(60)
        """
    outcome = bounded(lambda: call(boxes(level), textwrap.dedent(code), seconds=0.6), 1)
    assert outcome.status in statuses, outcome


@thorough
def test_arguments_that_nobody_reads_do_not_stop_the_clock(boxes, level):
    big = "x" * (8 << 20)
    sleeping = lambda: call(boxes(level), "import time; time.sleep(60)" + RIGHT, seconds=0.3, arguments=(big,))  # noqa: E731
    assert bounded(sleeping, 1).status == "timeout"
    code = "import threading, time\ndef f(x): time.sleep(60)"
    later = lambda: call(boxes(level), code, lambda *_: None, seconds=0.3, arguments=(1, big, big))  # noqa: E731
    assert bounded(later, 1).status == "timeout"


@thorough
def test_the_clock_starts_anew_for_each_call_and_an_error_says_which(boxes, level):
    code = "import time\ndef f(x):\n    time.sleep(0.15 if x < 4 else 30)\n    return x + 1"
    outcome = call(boxes(level), code, seconds=0.4, arguments=(1, 2, 3, 4))
    assert (outcome.status, outcome.at) == ("timeout", 3)
    assert call(boxes(level), "def f(x): return [2][x - 1] if x < 2 else 1 / 0").at == 1
    assert call(boxes(level), "1 / 0" + RIGHT).at == -1


@levels
def test_an_answer_before_the_question_gains_nothing(boxes, level):
    """A reply that is sent twice must not be taken for the next call's."""
    code = """
        import os
        real = os.write
        def write(fd, data): return real(fd, bytes(data) + bytes(data)) and len(data)
        os.write = write
        def f(x): return 2
        """
    assert call(boxes(level), textwrap.dedent(code)).status != "passed"


@thorough
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (([],), "def f(x): x.append(x)"),
        (([],), "def f(x): x.extend([0] * 10**6)"),
        (({},), "def f(x): x[f] = f"),
        (([],), "class L(list):\n    def __len__(self): return 0\n    def __eq__(self, o): return True\n"
                "def f(x): x.append(L([1]))"),
        (([],), "import builtins\ndef f(x):\n    builtins.len = builtins.repr = builtins.list = builtins.tuple = None"),
    ],
    ids=["into themselves", "into something huge", "into functions", "into lying lists", "and the builtins"],
)  # fmt: skip
def test_arguments_may_be_changed_into_anything(boxes, level, arguments, code):
    seen = []
    outcome = bounded(lambda: call(boxes(level), code, lambda _, back: seen.append(back.value), arguments=arguments), 5)
    broken = "builtins" in code  # it takes from its own process what that answers with
    assert (outcome.status, seen) == (("exited", []) if broken else ("passed", [None]))


# --- nothing carries over ---------------------------------------------------------------------------------------------


@levels
def test_a_candidate_leaves_nothing_for_the_next(boxes, level):
    box = boxes(level)
    seen: list[object] = []

    def judge(index: int, returned: Returned) -> None:
        seen.append(returned.value)

    assert call(box, FIND, judge, arguments=(0,)).status == "passed"
    before = seen[-1]
    box.run(LEAVE, seconds=5, memory_mb=512)
    call(box, LEAVE + "\ndef f(x): return x")
    assert call(box, FIND, judge, arguments=(0,)).status == "passed"
    (found, state), (_, clean) = seen[-1], before
    if level == "unsafe":  # files of the machine are in its reach there, and its server's priority
        state[0] = clean[0]
        found = [each for each in found if not each.startswith("/") and each not in ("shm", "msg", "sem", "key")]
    try:
        assert found == []
        names = ("nice", "umask", "processors", "recursion", "path", "environment", "folder", "descriptors", "modules")
        for name, now, then in zip(names, state, clean, strict=True):
            if name in ("environment", "folder"):  # each has a folder of its own
                continue
            assert now == then, name
    finally:
        clean_machine()


def clean_machine() -> None:
    """Remove what level unsafe lets a candidate leave."""
    for place in ("/tmp", "/var/tmp", "/dev/shm", "/run", "/run/lock", "/dev", "/", str(Path.home())):
        with contextlib.suppress(OSError):
            Path(place, f"{MARK}-left").unlink()
        with contextlib.suppress(OSError):
            Path(place, f"{MARK}-folder").rmdir()


def verdicts(box: Sandbox, names: list[str]) -> dict[str, str]:
    return {name: call(box, TRICKS[name].code + (RIGHT if name in HARMLESS else WRONG)).status for name in names}


HARMLESS = {"replaces the standard streams", "an exit hidden in a warning", "shrinks every pipe", "prints the marker"}


@slow
@levels
def test_verdicts_do_not_change_with_the_order(boxes, level):
    names = [
        name
        for name, trick in TRICKS.items()
        if "timeout" not in ((trick.run or frozenset()) | (trick.call or frozenset()))
        and len(trick.call or trick.run or ()) == 1
        and level not in trick.never_at
    ]
    first = verdicts(boxes(level), names)
    assert all(first[name] == "passed" for name in HARMLESS)
    for seed in range(3):
        random.Random(seed).shuffle(names)
        assert verdicts(boxes(level), names) == first


@thorough
def test_neighbours_do_not_feel_each_other(boxes, level):
    """Right and hostile candidates at the same time, more of them than processors."""
    box = boxes(level)
    names = ("empties every dictionary", "kills itself", "closes every descriptor", "a big file", "changes json")
    hostile = [TRICKS[name].code + WRONG for name in names]
    jobs = [code for pair in zip(hostile, [RIGHT] * len(hostile), strict=True) for code in pair]
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda code: call(box, code), jobs))
    assert [outcome.status == "passed" for outcome in outcomes] == [False, True] * len(hostile)


# First of all each makes sure that the test's own process is out of its reach.
WALLED = f"""
import os
try: os.kill({os.getpid()}, 0)
except OSError: pass
else: os._exit(1)
"""
KILLERS = {
    "what started it": """
for number in (9, 15, 19):
    try: os.kill(os.getppid(), number)
    except OSError: pass
""",
    "everything in sight": """
try: os.kill(-1, 9)
except OSError: pass
""",
    "its group and session": """
if os.getpgrp() == os.getpid(): os.killpg(0, 9)
""",
    "what started it, by its limits": """
import resource
for which in range(16):
    try: resource.prlimit(os.getppid(), which, (0, 0))
    except (OSError, ValueError): pass
""",
}


@confined
@pytest.mark.parametrize("name", KILLERS)
def test_the_next_candidate_does_not_feel_that_one_killed(boxes, level, name):
    """Never at level unsafe, where this would kill the tests."""
    box = boxes(level)
    assert call(box, WALLED + KILLERS[name] + WRONG).status != "passed"
    assert box.run(WALLED + KILLERS[name] + "\nassert False", seconds=5, memory_mb=512).status != "passed"
    for _ in range(3):
        assert call(box, RIGHT).status == "passed"


# --- nothing is left --------------------------------------------------------------------------------------------------

NAME = f"xft-{os.getpid()}"
"""The name of processes that these tests start, and no other process has; at most 15 characters."""
NAMED = f"""
import ctypes
ctypes.CDLL(None).prctl(15, b'{NAME}', 0, 0, 0)
"""
LEAVERS = {
    "a child": "import os, time\nif not os.fork(): time.sleep(60)",
    "a child of its own session": "import os, time\nif not os.fork(): os.setsid(); time.sleep(60)",
    "a grandchild of its own session": """
import os, time
if not os.fork():
    os.setsid()
    if os.fork(): os._exit(0)
    os.chdir('/')
    os.closerange(0, 256)
    time.sleep(60)
""",
    "a chain that never stands still": """
import os, time
if not os.fork():
    os.setsid()
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        if os.fork(): os._exit(0)
        os.setsid()
        time.sleep(0.002)
    os._exit(0)
""",
    "a stopped child": "import os, signal\nif not os.fork(): os.setsid(); os.kill(os.getpid(), signal.SIGSTOP)",
    "a child that ignores signals": """
import os, signal, time
if not os.fork():
    for n in (1, 2, 3, 13, 15): signal.signal(n, signal.SIG_IGN)
    time.sleep(60)
""",
    "a child that holds every descriptor": "import os, time\nif not os.fork(): time.sleep(60)\nos.closerange(0, 256)",
}
ENDINGS = {"right": RIGHT, "wrong": WRONG, "leaves": "\nimport os; os._exit(0)\n", "loops": "\nwhile True: pass\n"}


def marked() -> list[str]:
    """Return the living processes called NAME."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            text = path.read_text(errors="replace")
            if f"({NAME}) " in text and f"({NAME}) Z" not in text:
                found.append(path.parent.name)
    return found


def soon(condition: Callable[[], bool], seconds: float = 3.0) -> bool:
    """Wait until something holds."""
    ends = time.monotonic() + seconds
    while not condition() and time.monotonic() < ends:
        time.sleep(0.01)
    return condition()


QUICK_ENDS = {("right", "a grandchild of its own session"), ("loops", "a chain that never stands still")}


@pytest.mark.parametrize(
    ("level", "ending", "name"),
    [
        pytest.param(level, ending, name, marks=[] if level == LEVELS[0] and (ending, name) in QUICK_ENDS else slow)
        for level in LEVELS
        for ending in ENDINGS
        for name in LEAVERS
    ],
)
def test_no_process_outlives_its_run(boxes, level, ending, name):
    code = NAMED + LEAVERS[name] + ENDINGS[ending]
    bounded(lambda: call(boxes(level), code, seconds=0.4), 1)
    assert soon(lambda: not marked()), marked()
    boxes(level).run(code, seconds=0.4, memory_mb=512)
    assert soon(lambda: not marked()), marked()
    assert call(boxes(level), RIGHT).status == "passed"


HOST = """
import sys, time
sys.path[:0] = {paths!r}
from xft.eval.sandbox import Call, Sandbox
with Sandbox({level!r}, allow_unsafe=True) as box:
    print("ready", flush=True)
    {work}
"""


@pytest.mark.parametrize(
    ("level", "number", "entry"),
    [
        pytest.param(level, number, entry, marks=[] if (number, entry) == (signal.SIGKILL, "call") else slow)
        for level in LEVELS[:2]
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
        for entry in ("run", "call")
    ],
)
def test_nothing_outlives_the_sandboxs_own_process(level, number, entry, tmp_path):
    child = LEAVERS["a child of its own session"] if level != "landlock" else ""  # where it may start none
    code = NAMED + child + "\ndef f(x):\n    while True: pass\n"
    work = f"box.run({code + 'f(1)'!r}, seconds=30, memory_mb=512)"
    if entry == "call":
        one = "Call(arguments=(1,), seconds=30.0)"
        work = f"box.call({code!r}, 'f', [{one}], lambda *_: None, memory_mb=512)"
    open_box(level).__exit__(None, None, None)  # skips where the level does not work
    host = subprocess.Popen(
        [sys.executable, "-c", HOST.format(paths=sys.path, level=level, work=work)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert host.stdout is not None
    with host, host.stdout:
        try:
            assert host.stdout.readline() == b"ready\n"
            assert soon(lambda: len(marked()) == (2 if child else 1), 20)
        finally:
            host.send_signal(number)
        host.wait(10)
    assert soon(lambda: not marked(), 5), marked()
    if number == signal.SIGINT:  # the others give no time to tidy up
        assert list(tmp_path.iterdir()) == []


def below(pid: int) -> set[int]:
    """Return the processes below one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
    found, queue = set(), [pid]
    for each in queue:
        queue += [child for child, parent in parents.items() if parent == each]
    found.update(queue[1:])
    return found


THEIRS = 0x78667468
"""Key of the shared memory that test_conformance.py makes outside of any sandbox, maybe at the same time."""


def litter() -> dict[str, object]:
    """Return all that a run might leave on the machine; other programs' files do not carry MARK."""
    here = Path("/proc/self")
    places = [Path(place) for place in ("/tmp", "/var/tmp", "/dev/shm", "/run", "/run/lock", "/dev", "/", Path.home())]
    kinds = {kind: Path("/proc/sysvipc", kind).read_text().splitlines()[1:] for kind in ("shm", "msg", "sem")}
    sysvipc = [
        f"{kind} {' '.join(line.split()[:2])}"  # key and id
        for kind, lines in kinds.items()
        for line in lines
        if int(line.split()[0]) != THEIRS
    ]
    return {
        "mounts": here.joinpath("mountinfo").read_text(),
        "descriptors": sorted(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "processes": below(os.getpid()),
        "marked": marked(),
        "files": [str(each) for place in places for each in place.glob(f"{MARK}*")],
        "shared memory": sysvipc,
    }


def new_since(before: dict[str, Any]) -> dict[str, Any]:
    """Return what a run has left; what other tests, in this process or beside it, had open may have ended meanwhile."""
    now: dict[str, Any] = litter()
    none_new = {what: set(now[what]) <= set(before[what]) for what in ("processes", "marked", "files", "shared memory")}
    none_new |= {"descriptors": len(now["descriptors"]) <= len(before["descriptors"])}
    none_new |= {"threads": now["threads"] <= before["threads"]}
    return {what: (before[what], now[what]) for what in now if not none_new.get(what, now[what] == before[what])}


def churn(box: Sandbox, few: bool) -> None:
    """Run something of everything."""
    names = ["kills itself", "closes every descriptor", "a big file"]
    if not few:
        names += ["many small files", "memory bit by bit", "200 processes", "empties every dictionary"]
    for name in names:
        if box.level not in TRICKS[name].never_at:
            box.run(TRICKS[name].code, seconds=2, memory_mb=256)
            call(box, TRICKS[name].code + WRONG, seconds=2, memory_mb=256)
    for code in list(LEAVERS.values())[: 2 if few else None]:
        call(box, NAMED + code + WRONG, seconds=2)
    call(box, "def f(x): return 'x' * 900000", seconds=2)
    box.run(SPRAY.format(data=FORGED["a flood"]), seconds=2, memory_mb=256)
    call(box, "while True: pass", seconds=0.2)


@levels
@pytest.mark.parametrize("few", [True, pytest.param(False, marks=slow)], ids=["few", "many"])
def test_nothing_is_left_once_a_sandbox_is_closed(level, few, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with open_box(level) as box:
        call(box, RIGHT)  # whatever is loaded once
    gc.collect()
    before = litter()
    with open_box(level) as box:
        churn(box, few)
        assert call(box, RIGHT).status == "passed"
        assert call(box, WRONG).status == "wrong"
    gc.collect()
    assert soon(lambda: not new_since(before)), new_since(before)
    assert list(tmp_path.iterdir()) == []


def resident_mb() -> float:
    """Return this process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


@slow
@pytest.mark.parametrize("level", LEVELS[:2])
def test_the_parents_memory_stays_flat(level, tmp_path, monkeypatch):
    """Less than 8 MB over 600 candidates, and no temporary file, descriptor or process gathers while it is open."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    others = set(below(os.getpid()))  # servers of the module's other boxes
    with open_box(level) as box:

        def round_of(count: int) -> None:
            for n in range(count):
                call(box, ("def f(x): return [0] * 100000" if n % 3 else "def f(x): return f") + f"\n# {n}")
                box.run(f"print('x' * 10**6)\nassert False, {n}", seconds=5, memory_mb=256)

        round_of(50)
        gc.collect()
        before, held, files = resident_mb(), len(os.listdir("/proc/self/fd")), len(list(tmp_path.rglob("*")))
        round_of(300)
        gc.collect()
        assert resident_mb() - before < 8
        assert len(os.listdir("/proc/self/fd")) <= held
        assert len(list(tmp_path.rglob("*"))) <= files
        assert len(set(below(os.getpid())) - others) <= 8


@slow
def test_a_huge_answer_is_not_held(boxes):
    """An answer of 200 MB to a call that may answer 1 MB costs the parent a few."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = call(boxes(LEVELS[0]), "def f(x): return 'x' * (200 << 20)", memory_mb=2048)
    assert outcome.status in {"wrong", "memory", "timeout"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


# --- commands of other languages --------------------------------------------------------------------------------------

PROOF = "proof-of-the-end"
SHELL: dict[str, tuple[str, set[str]]] = {
    "says nothing": ("exit 0", {"exited", "failed", "wrong"}),
    "proof and a bad code": (f"echo {PROOF}; exit 3", {"exited", "failed", "wrong"}),
    "proof on the wrong stream": (f"echo {PROOF} >&2", {"exited", "failed", "wrong"}),
    "proof before the end": (f"echo {PROOF}; echo more", {"exited", "failed", "wrong"}),
    "part of the proof": (f"printf {PROOF[:-1]}", {"exited", "failed", "wrong"}),
    "a flood": ("while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done", {"timeout"}),
    "a flood of errors": ("while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx >&2; done", {"timeout"}),
    "a loop": ("trap '' TERM INT HUP; while :; do :; done", {"timeout"}),
    "a child holds the output": ("sleep 60 & exit 1", {"exited", "failed", "wrong"}),
    "killed": ("kill -9 $$", {"exited", "failed"}),
    "a big file": ("dd if=/dev/zero of=big bs=1M count=200 2>/dev/null && exit 1; exit 2", {"exited", "failed"}),
    "200 processes": (
        "n=0; while [ $n -lt 200 ]; do sleep 30 & n=$((n+1)); done; exit 1",
        {"exited", "failed", "timeout"},
    ),
}


def execute(box: Sandbox, files: dict[str, str], *steps: Step, memory_mb: int = 512) -> Outcome:
    return box.execute(files, steps, proof=PROOF, memory_mb=memory_mb)


@thorough
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=slow) if "timeout" in SHELL[name][1] else name for name in SHELL]
)
def test_a_command_that_does_not_prove_its_end_does_not_pass(boxes, level, name):
    if level == "unsafe" and "200" in name:
        pytest.skip("not tried: nothing bounds root's processes there")
    script, statuses = SHELL[name]
    step = Step(argv=("/bin/sh", "main.sh"), seconds=1.0)
    outcome = bounded(lambda: execute(boxes(level), {"main.sh": script}, step), 1)
    assert outcome.status in statuses, outcome
    good = execute(boxes(level), {"main.sh": f"echo chat; echo {PROOF}"}, step)
    assert good.status == "passed", good


@levels
def test_a_command_that_leaves_a_child_still_passes_and_the_child_is_gone(boxes, level):
    script = f"cp /bin/sleep {NAME} && ./{NAME} 60 & echo {PROOF}"
    began = time.monotonic()
    step = Step(argv=("/bin/sh", "main.sh"), seconds=20.0)
    assert execute(boxes(level), {"main.sh": script}, step).status == "passed"
    assert time.monotonic() - began < SLACK_S
    assert soon(lambda: not marked()), marked()


@confined
def test_links_out_of_the_folder_are_not_followed_for_a_command(boxes, level, tmp_path):
    """What runs between the steps is not confined itself."""
    outside = tmp_path / "outside"
    outside.write_text("kept")
    outside.chmod(0o600)
    steps = [
        Step(argv=("/bin/sh", "main.sh"), seconds=5.0, compile=True),
        Step(argv=("./link",), seconds=5.0),
        Step(argv=("./folder/outside",), seconds=5.0),
    ]
    script = f"ln -s {outside} link; ln -s {tmp_path} folder; mkdir deep; chmod 0 deep"
    assert execute(boxes(level), {"main.sh": script}, *steps).status == "failed"
    assert execute(boxes(level), {"main.sh": script}, steps[0], steps[2]).status == "failed"
    assert (outside.read_text(), outside.stat().st_mode & 0o777) == ("kept", 0o600)


CPP: dict[str, str] = {
    "leaves at once": "#include <cstdlib>\nint main() { _Exit(0); }",
    "leaves before main": "#include <cstdlib>\nint early = (std::_Exit(0), 0);\nint main() { return 1; }",
    "aborts": "#include <cstdlib>\nint main() { abort(); }",
    "bad memory": "int main() { *(volatile int*)8 = 1; }",
    "deep recursion": "int f(volatile int n) { return n ? f(n + 1) + n : 0; }\nint main() { return f(1); }",
    "loops": "int main() { for (volatile int i = 0;; ) i = i + 1; }",
    "memory": "#include <vector>\nint main() { std::vector<char*> v; for (;;) { v.push_back(new char[1 << 20]); "
    "for (int i = 0; i < 1 << 20; i += 4096) v.back()[i] = 1; } }",
    "a flood": '#include <cstdio>\nint main() { for (;;) puts("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"); }',
    "a socket": "#include <sys/socket.h>\nint main() { return socket(AF_INET, SOCK_STREAM, 0) < 0 ? 1 : 2; }",
    "kills what started it": "#include <csignal>\n#include <unistd.h>\nint main() { kill(getppid(), 9); return 1; }",
    "compiler: a file of the machine": '#include "/etc/shadow"\nint main() {}',
    "compiler: includes itself twice": "#include __FILE__\n#include __FILE__\nint main() {}",
    "compiler: doubling macros": "#define A0 +1\n"
    + "\n".join(f"#define A{n + 1} A{n} A{n}" for n in range(40))
    + "\nint main() { return 0 A40; }",
    "compiler: endless templates": "template<int a, int b> struct T { "
    "static const int v = T<a + 1, b>::v + T<a, b + 1>::v; };\nint main() { return T<0, 0>::v; }",
    "compiler: a huge object": "char x[3u << 30] = {1};\nint main() { return x[5]; }",
    "assembler: a file without an end": 'asm(".incbin \\"/dev/zero\\"");\nint main() {}',
    "assembler: a file of the machine": 'asm(".incbin \\"/etc/shadow\\"");\nint main() { return 1; }',
}


@slow
@confined
@pytest.mark.parametrize("name", CPP)
def test_hostile_cpp_does_not_pass(boxes, level, name):
    if not shutil.which("g++"):
        pytest.skip("not run: g++")
    steps = (
        Step(argv=("g++", "-std=c++17", "-o", "main", "main.cpp"), seconds=8.0, compile=True),
        Step(argv=("./main",), seconds=1.0),
    )
    work = lambda: execute(boxes(level), {"main.cpp": CPP[name]}, *steps, memory_mb=1024)  # noqa: E731
    outcome = bounded(work, 9)
    assert outcome.status != "passed"
    if "shadow" in CPP[name]:
        assert "root:" not in outcome.error
    good = f'#include <cstdio>\nint main() {{ puts("{PROOF}"); }}'
    assert execute(boxes(level), {"main.cpp": good}, *steps, memory_mb=1024).status == "passed"


NODE: dict[str, str] = {
    "leaves": "process.exit(0)",
    "leaves inside": "process.reallyExit(0)",
    "loops": "for (;;);",
    "loops and hears nothing": "for (const s of ['SIGTERM', 'SIGINT', 'SIGHUP']) process.on(s, () => {}); for (;;);",
    "waits": "setInterval(() => {}, 1000)",
    "memory": "const kept = []; for (;;) kept.push(new Array(1e6).fill(kept.length))",
    "memory outside the heap": "const kept = []; for (;;) kept.push(Buffer.alloc(1 << 26, 1))",
    "a flood": "for (;;) console.log('x'.repeat(1000))",
    "deep recursion": "function f() { f() } f()",
    "reads the machine": "console.log(require('fs').readFileSync('/etc/shadow', 'utf8')); process.exit(1)",
    "connects": "const s = require('net').connect(22, '127.0.0.1'); s.on('connect', () => console.log('@PROOF')); "
    "s.on('error', () => process.exit(1))",
    "a child goes on": "const options = {detached: true, stdio: 'ignore'}; "
    "require('child_process').spawn('sleep', ['60'], options).unref(); process.exit(1)",
    "kills what started it": "try { process.kill(process.ppid, 9) } catch {} process.exit(1)",
}


@slow
@confined
@pytest.mark.parametrize("name", NODE)
def test_hostile_javascript_does_not_pass(boxes, level, name):
    if not shutil.which("node"):
        pytest.skip("not run: node")
    step = Step(argv=("node", "main.js"), seconds=2.0)
    script = NODE[name].replace("@PROOF", PROOF)
    outcome = bounded(lambda: execute(boxes(level), {"main.js": script}, step, memory_mb=512), 3)
    assert outcome.status != "passed"
    assert "root:" not in outcome.error
    good = execute(boxes(level), {"main.js": f"console.log('{PROOF}')"}, step, memory_mb=512)
    assert good.status == "passed", good


# --- the real thing ---------------------------------------------------------------------------------------------------

BOUND = """
import os, time
children = []
try:
    for _ in range(450):
        child = os.fork()
        if not child:
            time.sleep(10)
            os._exit(0)
        children.append(child)
except OSError: pass
if len(children) == 450: time.sleep(1)
assert len(children) == 450
"""
BOMBS = {
    "forks": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "forks that hide": """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    try:
        if os.fork(): os.setsid()
    except OSError: pass
""",
    "forks with memory": """
import os
x = []
while True:
    try: os.fork()
    except OSError: x.append(bytearray(10**6))
""",
}


@slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_fork_bomb_ends(boxes, name):
    """Only behind namespaces, and only where a bounded one has just shown that the kernel counts."""
    box = boxes("namespaces")
    shown = box.run(BOUND, seconds=10, memory_mb=1024)
    if shown.status != "failed":
        pytest.fail(f"processes are not bounded: {shown}")
    outcome = bounded(lambda: box.run(NAMED + BOMBS[name], seconds=2, memory_mb=512), 2, 60)
    assert outcome.status in {"failed", "timeout", "memory"}
    assert soon(lambda: not marked()), marked()
    assert call(box, RIGHT).status == "passed"
