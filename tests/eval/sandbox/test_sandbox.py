"""The sandbox's contract, over every level that works on this machine."""

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xft.errors import MissingExtraError, SandboxError
from xft.eval.sandbox import Sandbox, detect_level, follow, sandbox, server

pytestmark = pytest.mark.sampled

LEVELS = ("namespaces", "landlock", "unsafe")
CONFINED = LEVELS[:2]


def open_sandbox(level: str, **options: object) -> Sandbox:
    try:
        return Sandbox(level, allow_unsafe=True, **options)
    except SandboxError as error:
        pytest.skip(f"not run: {error}")


@pytest.fixture(params=LEVELS, scope="module")
def box(request) -> Iterator[Sandbox]:
    with open_sandbox(request.param) as opened:
        yield opened


@pytest.fixture(params=CONFINED, scope="module")
def confined(request) -> Iterator[Sandbox]:
    with open_sandbox(request.param) as opened:
        yield opened


@pytest.fixture(scope="module")
def walled() -> Iterator[Sandbox]:
    with open_sandbox("namespaces") as opened:
        yield opened


def run(sandbox: Sandbox, program: str, seconds: float = 20.0, memory_mb: int = 512):
    return sandbox.run(textwrap.dedent(program), seconds=seconds, memory_mb=memory_mb)


# --- right programs pass ----------------------------------------------------------------------------------------------

RIGHT = {
    "plain": "assert 1 + 1 == 2",
    "empty": "",
    "chatty": "import sys\nfor _ in range(20000):\n    print('x' * 100)\n    print('y', file=sys.stderr)",
    "reads no input": "import sys\nassert sys.stdin.read() == ''",
    "demonstration is not run": "if __name__ == '__main__':\n    raise SystemExit(1)",
    "dataclass and typing": """
        from __future__ import annotations
        import dataclasses, typing
        @dataclasses.dataclass
        class Point:
            x: int
        assert Point(1) == Point(1)
        """,
    "annotations are evaluated": "def f(x: int): ...\nassert f.__annotations__ == {'x': int}",
    "deep recursion caught": "def f(n): return f(n + 1)\ntry:\n    f(0)\nexcept RecursionError:\n    pass",
    "sleeps on its clock": "import time\ntime.sleep(0.2)",
    "quits inside a try": "try:\n    raise SystemExit\nexcept SystemExit:\n    pass",
    "surrogates": "assert len('\\ud800') == 1",
    "hash order is fixed": "assert hash('a') == %d",
}


@pytest.mark.parametrize("program", RIGHT.values(), ids=RIGHT)
def test_a_right_program_passes(box, program):
    if "%d" in program:
        seeded = [sys.executable, "-c", "print(hash('a'))"]
        program %= int(subprocess.run(seeded, env={"PYTHONHASHSEED": "0"}, capture_output=True, check=True).stdout)
    outcome = run(box, program)
    assert (outcome.status, outcome.error) == ("passed", "")


def test_threads_are_allowed_where_they_can_be_counted(confined):
    program = "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()"
    assert run(confined, program).status == "passed"


def test_the_working_folder_is_a_private_disk(walled):
    program = "import os, tempfile\nassert os.listdir('.') == []\nwith tempfile.TemporaryFile() as f: f.write(b'1')"
    assert run(walled, program).status == "passed"


def test_subprocesses_work_behind_the_wall(walled):
    assert run(walled, "import subprocess as s\ns.run(['true'], check=True, stdout=s.DEVNULL)").status == "passed"


# --- wrong programs and cheats fail -----------------------------------------------------------------------------------

WRONG = {
    "assertion": ("assert 1 == 2, 'no'", "failed"),
    "exception": ("{}['x']", "failed"),
    "syntax": ("def f(:", "failed"),
    "surrogate": ("x = '\ud800'", "failed"),
    "null byte": ("x = 1\0", "failed"),
    "keyboard interrupt": ("raise KeyboardInterrupt", "failed"),
    "error without text": (
        "class E(Exception):\n    def __str__(self): raise SystemExit(0)\nraise E",
        "failed",
    ),
    "sys.exit(0)": ("import sys\nsys.exit(0)\nassert False", "exited"),
    "os._exit(0)": ("import os\nos._exit(0)\nassert False", "exited"),
    "raise SystemExit": ("raise SystemExit\nassert False", "exited"),
    "quit by signal": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "exited"),
    "crash": ("import ctypes\nctypes.string_at(0)", "exited"),
    "prints the marker": ("import sys\nprint('passed ' + '0' * 32)\nsys.exit(0)", "exited"),
    "writes to every descriptor": (
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'passed ')\n    except OSError: pass\nos._exit(0)",
        "exited",
    ),
    "forges the supervisor's report": (
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'ready\\nexit 0\\n')\n    except OSError: pass\n"
        "assert False",
        None,
    ),
    "imports the runner": ("import __main__\nassert __main__.run", "failed"),
    "exit hooks": ("import atexit, os\natexit.register(os._exit, 0)\nassert False", "failed"),
    "an alarm ends it": (
        "import os, signal\nsignal.signal(signal.SIGALRM, lambda *_: os._exit(0))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.05)\nwhile True: pass",
        "exited",
    ),
}


@pytest.mark.parametrize(("program", "status"), WRONG.values(), ids=WRONG)
def test_a_wrong_program_does_not_pass(box, program, status):
    outcome = run(box, program)
    assert outcome.status != "passed"
    assert status is None or outcome.status == status
    assert outcome.error


def test_a_forked_copy_cannot_pass_for_the_program(walled):
    program = "import os\nif os.fork():\n    os.wait()\n    assert False\n"
    assert run(walled, program).status == "failed"


def test_error_text_is_one_short_printable_line(box):
    outcome = run(box, "raise ValueError('\\x1b[31m\\n' * 50 + 'z' * 10**6)")
    assert outcome.error.isprintable()
    assert outcome.error.startswith("ValueError: [31m [31m")
    assert len(outcome.error) <= follow.MAX_ERROR


def test_error_names_the_programs_line(box):
    assert run(box, "x = 1\n\ny = 1 / 0\n").error == "ZeroDivisionError: division by zero (line 3)"


# --- hangs and floods end ---------------------------------------------------------------------------------------------

ENDLESS = {
    "loop": "while True: pass",
    "C code that hears no alarm": "from itertools import product\nfor _ in product(range(10**4), repeat=9): pass",
    "swallows everything": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "ignores signals": "import signal, time\nfor n in (15, 2, 24): signal.signal(n, signal.SIG_IGN)\ntime.sleep(100)",
    "stops itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "floods its output": "while True: print('x' * 1000)",
}


@pytest.mark.parametrize("program", ENDLESS.values(), ids=ENDLESS)
def test_an_endless_program_is_a_timeout(confined, program):
    began = time.monotonic()
    outcome = run(confined, program, seconds=0.4)
    assert outcome.status == "timeout"
    assert outcome.seconds >= 0.4
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "program",
    ["x = [0] * 10**10", "x = []\nwhile True: x.append(bytearray(10**6))", "x = 'x'\nwhile True: x += x"],
    ids=["at once", "bit by bit", "doubling"],
)
def test_memory_beyond_the_limit_is_told_apart(box, program):
    assert run(box, program, memory_mb=256).status == "memory"


def test_memory_of_all_processes_counts_together(walled):
    program = "import os, time\nfor _ in range(4): os.fork()\nx = b'x' * (100 << 20)\ntime.sleep(20)"
    assert run(walled, program, memory_mb=300).status == "memory"


def test_many_processes_are_stopped(confined):
    """One level of children only: should the limit fail, the machine survives this test."""
    program = "import os, time\nfor _ in range(200):\n    if not os.fork():\n        time.sleep(60)\ntime.sleep(60)"
    began = time.monotonic()
    assert run(confined, program).status == "failed"
    assert time.monotonic() - began < 10


MARK = "xft-leftover-{level}-{pid}"


def living(mark: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("ending", ["", "while True: pass", "assert False", "import os; os._exit(0)"])
def test_what_a_program_leaves_dies_with_it(walled, ending):
    mark = MARK.format(level=walled.level, pid=os.getpid())
    program = f"""
        import os, subprocess, sys, time
        subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', '{mark}'])
        if not os.fork():
            os.setsid()
            if not os.fork():
                os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)', '{mark}'])
            os._exit(0)
        time.sleep(0.1)
        """
    run(walled, textwrap.dedent(program) + ending, seconds=1)
    assert living(mark) == []


def test_orphans_are_found_below_the_supervisor_where_nothing_else_holds_them():
    if os.getuid():
        pytest.skip("not run: an ordinary user's candidate can't start processes at level unsafe")
    mark = MARK.format(level="unsafe", pid=os.getpid())
    program = f"""
        import os, sys
        if not os.fork():
            os.setsid()
            if not os.fork():
                os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)', '{mark}'])
            os._exit(0)
        os.wait()
        """
    assert run(Sandbox("unsafe", allow_unsafe=True), program).status == "passed"
    assert living(mark) == []


def test_the_folder_is_removed(box, tmp_path, monkeypatch):
    monkeypatch.setattr(server.tempfile, "tempdir", str(tmp_path))
    with open_sandbox(box.level) as fresh:
        run(fresh, "import os\nfor n in range(20):\n    os.mkdir('n' * 250)\n    os.chdir('n' * 250)")
        run(fresh, "import os\nassert os.listdir('.') == []\nopen('closed', 'w').close()")
        assert run(fresh, "import os\nassert os.listdir('.') == []").status == "passed"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_left_when_the_parent_is_killed(level, tmp_path):
    open_sandbox(level)
    script = f"""if True:
        import os, signal
        from xft.eval.sandbox import Call, Sandbox
        box = Sandbox({level!r}, allow_unsafe=True)
        def judge(index, returned):
            os.kill(os.getpid(), signal.SIGKILL)
        code = "def f(x): open('left', 'w').close()"
        box.call(code, "f", [Call(arguments=(1,), seconds=9)] * 9, judge, memory_mb=512)
        """
    ended = subprocess.run([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert ended.returncode == -9
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (left := [*tmp_path.iterdir(), *living(str(tmp_path))]):
        time.sleep(0.05)
    assert not left


# --- walls ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attempt",
    [
        "__import__('socket').socket()",
        "__import__('socket').create_connection(('127.0.0.1', 9))",
        "__import__('socket').socket(__import__('socket').AF_UNIX)",
        "open({target!r}, 'w')",
        "os.unlink({target!r})",
        "os.chmod({target!r}, 0)",
        "os.kill({pid}, 0)",
        "os.setuid(12345)",
        "os.chroot('/')",
        "__import__('ctypes').CDLL(None).unshare(0x10000000) and (_ for _ in ()).throw(OSError())",
        "__import__('ctypes').CDLL(None).ptrace(0, 0, 0, 0) and (_ for _ in ()).throw(OSError())",
        "open('/dev/mem', 'rb')",
        "open('/proc/sys/kernel/hostname', 'w')",
    ],
)
def test_reaching_out_is_refused(confined, attempt, tmp_path):
    target = tmp_path / "mine"
    target.write_text("kept")
    line = attempt.format(target=str(target), pid=os.getpid())
    outcome = run(confined, f"import os\ntry:\n    {line}\nexcept OSError:\n    pass\nelse:\n    assert False")
    assert outcome.status == "passed", outcome
    assert target.read_text() == "kept"


def test_disks_and_other_processes_are_out_of_sight(walled):
    program = """
        import os
        assert set(os.listdir('/dev')) == {'null', 'zero', 'random', 'urandom', 'shm', 'fd'}, os.listdir('/dev')
        assert len([name for name in os.listdir('/proc') if name.isdigit()]) <= 2
        """
    assert run(walled, program).status == "passed"


def test_other_files_are_out_of_sight(confined):
    """Data with the expected values among them."""
    for path in (__file__, sandbox.__file__):
        assert run(confined, f"open({path!r})").error.startswith(("FileNotFoundError", "PermissionError"))


def test_the_environment_is_scrubbed(box, monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    expected = {*server.environment(""), "LC_CTYPE"}
    program = f"import os\nassert set(os.environ) <= {expected}"
    assert run(box, program).status == "passed"


def test_only_the_standard_library_is_there(box):
    assert run(box, "import numpy").error.startswith("ModuleNotFoundError")


# --- libraries and interpreters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_a_named_library_can_be_imported_and_no_other(level):
    with open_sandbox(level, libraries=["numpy"]) as box:
        assert run(box, "import numpy\nassert numpy.arange(3).sum() == 3", memory_mb=1024).status == "passed"
        assert run(box, "import sys\nassert 'numpy' not in sys.modules").status == "passed"
        assert run(box, "import pydantic").error.startswith("ModuleNotFoundError")


def test_a_library_that_is_not_installed_is_named():
    with pytest.raises(MissingExtraError, match="pip install no-such-library"):
        Sandbox(libraries=["no-such-library"], allow_unsafe=True)


@pytest.mark.parametrize("level", LEVELS)
def test_another_interpreter_brings_its_packages_and_is_warm(level):
    """The one of the tests, whose site-packages are found through its link."""
    with open_sandbox(level, python=Path(sys.executable), preload=["numpy"]) as box:
        program = f"import sys\nassert 'numpy' in sys.modules\nassert sys.prefix == {sys.prefix!r}\nimport pydantic"
        assert run(box, program, memory_mb=1024).status == "passed"


def test_an_interpreter_or_a_module_that_is_not_there_is_a_fault_that_names_it(confined):
    with pytest.raises(SandboxError, match="no-such-python"):
        run(Sandbox(confined.level, python=Path("/no-such-python")), "pass")
    with pytest.raises(SandboxError, match="no_such_module"):
        run(Sandbox(confined.level, preload=["no_such_module"]), "pass")


# --- the sandbox's own faults -----------------------------------------------------------------------------------------


def test_a_fault_is_tried_twice_and_never_a_verdict(monkeypatch):
    calls = []

    def broken(*arguments, **options):
        calls.append(arguments)
        raise OSError("no more processes")

    with open_sandbox("unsafe") as box:
        monkeypatch.setattr(server.subprocess, "Popen", broken)
        with pytest.raises(SandboxError, match="failed twice: no more processes"):
            run(box, "pass")
    assert len(calls) == 2


def test_a_server_that_dies_is_replaced(box):
    assert run(box, "pass").status == "passed"
    for each in box._idle:
        each.process.kill()
        each.process.wait()
    assert run(box, "pass").status == "passed"


def test_a_server_that_keeps_dying_is_a_fault(monkeypatch, tmp_path):
    with open_sandbox("unsafe") as box:
        monkeypatch.setattr(server, "HERE", tmp_path)
        with pytest.raises(SandboxError, match="No module named 'xft_sandbox"):
            run(box, "pass")


@pytest.mark.parametrize("limits", [{"seconds": "5"}, {"seconds": 0}, {"seconds": True}, {"memory_mb": -1}])
def test_a_limit_that_is_no_positive_number_is_refused(limits):
    with pytest.raises(ValueError, match="must be a positive number"):
        run(Sandbox("unsafe", allow_unsafe=True), "pass", **limits)


def test_without_a_working_level_the_sandbox_refuses(monkeypatch):
    monkeypatch.setattr(sandbox, "_disproof", lambda level: f"{level} is broken")
    detect_level.cache_clear()
    try:
        with pytest.raises(SandboxError, match=r"no sandbox works here \(namespaces: namespaces is broken; landlock"):
            Sandbox()
        with pytest.raises(SandboxError, match="level landlock does not work here: landlock is broken"):
            Sandbox("landlock")
        assert Sandbox(allow_unsafe=True).level == "unsafe"
    finally:
        detect_level.cache_clear()


def test_unsafe_is_never_chosen_unasked():
    with pytest.raises(SandboxError, match="allow_unsafe"):
        Sandbox("unsafe")
    with pytest.raises(SandboxError, match="unknown sandbox level 'docker'"):
        Sandbox("docker")


def test_the_strongest_working_level_is_chosen():
    level, reason = detect_level()
    assert reason
    for stronger in LEVELS[: LEVELS.index(level)]:
        with pytest.raises(SandboxError, match="does not work here"):
            Sandbox(stronger)
