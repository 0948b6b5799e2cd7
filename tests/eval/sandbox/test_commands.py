"""Commands of other languages in the sandbox."""

import os
import shutil
import sys

import pytest
from levels import LEVELS, open_box

from xft.eval.sandbox import Outcome, Sandbox, Step

pytestmark = pytest.mark.sampled

PYTHON = "/usr/bin/python3"


SLOW_LEVELS = [*LEVELS[:2], pytest.param("unsafe", marks=pytest.mark.slow)]


@pytest.fixture(params=SLOW_LEVELS, scope="module")
def box(request):
    with open_box(request.param) as opened:
        yield opened


def need(*names: str) -> None:
    for name in names:
        if not shutil.which(name):
            pytest.skip(f"not run: {name}")


def shell(box: Sandbox, script: str, *, proof="done", seconds=10.0, memory_mb=256) -> Outcome:
    steps = [Step(argv=["sh", "script"], seconds=seconds)]
    return box.execute({"script": script}, steps, proof=proof, memory_mb=memory_mb)


RIGHT = {
    "prints the proof last": "echo something; echo done",
    "without a last newline": "printf done",
    "writes to stderr too": "echo done; echo oops >&2",
    "floods its output": "head -c 30000000 /dev/zero | tr '\\0' 'x'; echo; echo done",
    "leaves a child with its pipes": "sleep 60 & echo done",
    "works in its folder": "mkdir a && echo 1 > a/b && mv a c && rm -r c && ls && echo done",
    "has an empty input": "test -z \"$(cat)\" && echo done",
    "has a home": 'test "$HOME" = "$PWD" && test "$TMPDIR" = "$PWD" && echo done',
}  # fmt: skip
WRONG = {
    "no proof": ("echo almost", "exited", "ended with code 0 before the end of the tests"),
    "proof not last": ("echo done; echo more", "exited", "ended with code 0 before the end of the tests"),
    "proof in stderr": ("echo done >&2", "exited", "ended with code 0 before the end of the tests"),
    "proof and a failure": ("echo done; echo 'first' >&2; echo 'last' >&2; exit 3", "failed", "last"),
    "failure without a word": ("exit 3", "failed", "ended with code 3 before the end"),
    "killed": (f"exec {PYTHON} -c 'import os; os.abort()'", "failed", "killed by SIGABRT"),
    "no end": ("while :; do :; done", "timeout", "no end of sh within 1 s"),
}


@pytest.mark.parametrize("script", RIGHT.values(), ids=RIGHT)
def test_a_right_command_passes(box, script):
    outcome = shell(box, script)
    assert (outcome.status, outcome.error, outcome.at) == ("passed", "", -1)


@pytest.mark.parametrize(("script", "status", "error"), WRONG.values(), ids=WRONG)
def test_a_wrong_command_does_not_pass(box, script, status, error):
    outcome = shell(box, script, seconds=1 if status == "timeout" else 10)
    assert (outcome.status, outcome.error, outcome.at) == (status, error, 0)


def test_a_command_that_is_not_there_is_named(box):
    outcome = box.execute({}, [Step(argv=["no-such-compiler", "x"], seconds=5)], proof="", memory_mb=256)
    assert outcome.status == "failed"
    assert "no-such-compiler" in outcome.error
    assert "No such file" in outcome.error


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", "a\0b"])
def test_files_stay_in_the_folder(box, name):
    with pytest.raises(ValueError, match="not a file's name"):
        box.execute({name: ""}, [], proof="", memory_mb=256)


def test_files_may_be_in_folders_and_hold_any_text(box):
    text = "\ud800 line\r\nend"
    program = f"import sys; assert ascii(open('a/b', errors='surrogatepass', newline='').read()) == {ascii(text)!r}"
    files = {"a/b": text, "check.py": program + "; print('done')"}
    outcome = box.execute(files, [Step(argv=[PYTHON, "check.py"], seconds=20)], proof="done", memory_mb=256)
    assert outcome.status == "passed", outcome


def test_an_interpreter_elsewhere_is_in_sight(box):
    """Also where its folder is a link's, and the libraries are with what it leads to."""
    steps = [Step(argv=[sys.executable, "-c", "import json; print('done')"], seconds=20)]
    assert box.execute({}, steps, proof="done", memory_mb=512).status == "passed"


CPP = '#include <cassert>\n#include <cstdio>\nint main() {{ assert({}); puts("done"); }}'


def test_a_compiler_and_its_program(box):
    need("g++")
    steps = [Step(argv=["g++", "main.cpp", "-o", "main"], seconds=60, compile=True), Step(argv=["./main"], seconds=5)]

    def outcome(condition: str) -> Outcome:
        return box.execute({"main.cpp": CPP.format(condition)}, steps, proof="done", memory_mb=1024)

    assert outcome("1 + 1 == 2").status == "passed"
    wrong = outcome("1 + 1 == 3")
    assert (wrong.status, wrong.at) == ("failed", 1)
    assert "Assertion" in wrong.error


def test_what_a_compiler_says_is_told(box):
    need("g++")
    steps = [Step(argv=["g++", "main.cpp"], seconds=60, compile=True), Step(argv=["./a.out"], seconds=5)]
    outcome = box.execute({"main.cpp": "int main() { return }"}, steps, proof="done", memory_mb=1024)
    assert (outcome.status, outcome.at) == ("failed", 0)
    assert outcome.error.startswith("main.cpp:1:")
    steps = [Step(argv=["sh", "-c", "echo fine; echo an error; exit 1"], seconds=10, compile=True)]
    assert box.execute({}, steps, proof="done", memory_mb=256).error == "an error"


def test_virtual_machines_run_within_their_memory(box):
    need("node")
    steps = [Step(argv=["node", "main.js"], seconds=20)]
    assert box.execute({"main.js": "console.log('done')"}, steps, proof="done", memory_mb=512).status == "passed"
    hungry = "const held = []; for (;;) held.push(Buffer.alloc(1 << 20, 1))"
    assert box.execute({"main.js": hungry}, steps, proof="done", memory_mb=256).status in ("memory", "failed")


@pytest.mark.slow
def test_java_compiles_and_runs(box):
    need("javac", "java")
    steps = [
        Step(argv=["javac", "Main.java"], seconds=60, compile=True),
        Step(argv=["java", "-cp", ".", "Main"], seconds=30),
    ]
    source = 'public class Main { public static void main(String[] a) { System.out.println("done"); } }'
    assert box.execute({"Main.java": source}, steps, proof="done", memory_mb=1024).status == "passed"


def test_memory_is_counted_from_outside(box):
    program = "import time\nheld = [b'x' * (1 << 20) for _ in range(400)]\ntime.sleep(20)"
    steps = [Step(argv=[PYTHON, "eat.py"], seconds=20)]
    outcome = box.execute({"eat.py": program}, steps, proof="done", memory_mb=200)
    assert outcome.status == "memory"


def test_many_processes_are_stopped(box):
    """One level of children only: should the limit fail, the machine survives this test."""
    outcome = shell(box, "for n in $(seq 150); do sleep 60 & done; wait")
    assert outcome.status == "failed"


def test_files_beyond_the_disk_are_refused_or_stopped(box):
    if box.level == "unsafe":
        pytest.skip("not tried: nothing is promised")
    outcome = shell(
        box, "for n in 1 2 3 4 5 6 7; do head -c 100000000 /dev/zero > $n || exit 1; done; sleep 5; echo done"
    )
    assert outcome.status == "failed"


@pytest.mark.parametrize(
    "attempt", ["kill -0 {parent}", "cat {ours}", "touch {ours}", "chmod 600 {ours}", "cat /etc/shadow"]
)
def test_reaching_out_is_refused(box, attempt, tmp_path):
    if box.level == "unsafe":
        pytest.skip("not tried: nothing is promised")
    ours = tmp_path / "ours"
    ours.write_text("x")
    outcome = shell(box, f"if {attempt.format(parent=os.getpid(), ours=ours)}; then exit 1; fi; echo done")
    assert outcome.status == "passed", outcome
    assert ours.stat().st_mode & 0o777 == 0o644


def test_a_command_cannot_write_to_the_channels_of_what_reports_on_it(box):
    if box.level == "unsafe":
        pytest.skip("not tried: nothing is promised")
    script = """
        for fd in 0 1 3 4 5 6 7 8; do
            if (echo forged > /proc/$PPID/fd/$fd) 2> /dev/null; then exit 1; fi
        done
        echo done
        """
    assert shell(box, script).status == "passed"


def test_the_next_command_finds_nothing_of_the_last(box):
    if box.level == "unsafe":
        pytest.skip("not tried: nothing is promised")
    shell(box, "echo 1 > left; mkdir -p /tmp/left /dev/shm/left; sleep 60 & echo done")
    assert shell(box, "ls -A | grep -v script; ls -A /dev/shm; ls -d /tmp/left; echo done").status == "passed"
    assert shell(box, "test $(ls -A | wc -l) = 1 && test ! -e /tmp/left && echo done").status == "passed"
