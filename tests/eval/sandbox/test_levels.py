"""Which level is chosen: as root or not, where user namespaces are forbidden, where nothing works."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import xft

SCRIPT = """
import json
from xft.eval.sandbox import Call, Sandbox, Step
with Sandbox(allow_unsafe=True) as box:
    limits = {"seconds": 30, "memory_mb": 512}
    call, touch = Call(arguments=(1,), seconds=30), ["touch", "/var/tmp/xft-left"]
    echo = ["sh", "-c", "test -e /proc/self/exe && echo done"]
    outcomes = [
        box.run("assert 1 + 1 == 2", **limits),
        box.run("assert 1 + 1 == 3", **limits),
        box.call("def f(x): return x", "f", [call], lambda index, returned: None, memory_mb=512),
        box.execute({}, [Step(argv=echo, seconds=30)], proof="done", memory_mb=512),
        box.execute({}, [Step(argv=touch, seconds=30)], proof="", memory_mb=512) if box.level != "unsafe" else None,
    ]
    print(json.dumps([box.level, box.reason, [outcome and outcome.status for outcome in outcomes]]))
"""
VERDICTS = ["passed", "failed", "passed", "passed", "failed"]

FILTER = """
import os
from xft.eval.sandbox import confine, seccomp
rules = seccomp.Rules(seccomp.ARCHITECTURES[os.uname().machine][0])
rules.code.append(seccomp.bpf(seccomp.LOAD, 0))
rules.refuse(seccomp.CLONE3, seccomp.ENOSYS)
rules.decide(seccomp.CLONE, 0, seccomp.JUMP_ANY_BIT, seccomp.CLONE_NEWUSER, seccomp.EPERM, seccomp.ALLOW)
for call in {refused}:
    rules.refuse(call)
confine.prctl(confine.PR_SET_NO_NEW_PRIVS, 1)
seccomp.filter_syscalls(rules.finish())
"""
UNSHARE, MOUNT, LANDLOCK = (272, 97), (165, 40), (444, 444)


def choose(*command: str, script: str = SCRIPT, path: Path | None = None) -> tuple[str, str, list[str]]:
    """Let a process open a sandbox; return its level, the reason, and how five candidates ended."""
    environment = {**os.environ, "PYTHONPATH": str(path or Path(xft.__file__).parents[1])}
    command = command or (sys.executable,)
    ended = subprocess.run([*command, "-B", "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    level, reason, statuses = json.loads(ended.stdout)
    return level, reason, statuses


def need(level: str) -> None:
    """Skip where the level does not work even unhindered."""
    chosen = choose()[0]
    if chosen not in ("namespaces", level):
        pytest.skip(f"not run: {level}")


@pytest.fixture
def readable_copy() -> Iterator[Path]:
    """The sandbox's own modules where every user can read them."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "xft")
        source = Path(xft.__file__).parent
        shutil.copytree(source / "eval" / "sandbox", package / "eval" / "sandbox")
        shutil.copy(source / "errors.py", package)
        (package / "__init__.py").touch()
        (package / "eval" / "__init__.py").touch()
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        yield Path(folder)


@pytest.mark.parametrize("refused", [[UNSHARE], [MOUNT]], ids=["user namespaces", "mounts"])
def test_where_a_container_forbids_namespaces_landlock_is_chosen_and_says_why(refused):
    need("landlock")
    level, reason, statuses = choose(script=FILTER.format(refused=refused) + SCRIPT)
    assert (level, statuses) == ("landlock", VERDICTS)
    assert reason.startswith("namespaces: PermissionError:")
    assert reason.endswith("landlock: proved by trying")


def test_where_a_container_covers_parts_of_proc_namespaces_still_work():
    if os.getuid() or not shutil.which("unshare") or choose()[0] != "namespaces":
        pytest.skip("not run: namespaces as root")
    cover = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc/irq && exec "$@"', "sh", sys.executable]
    assert choose(*cover)[::2] == ("namespaces", VERDICTS)


def test_where_landlock_is_missing_too_nothing_is_left_but_unsafe():
    level, reason, statuses = choose(script=FILTER.format(refused=[UNSHARE, LANDLOCK]) + SCRIPT)
    assert (level, statuses) == ("unsafe", [*VERDICTS[:4], None])
    assert "landlock: PermissionError: [Errno 1] landlock: Operation not permitted" in reason


@pytest.mark.parametrize("level", ["namespaces", "landlock"])
def test_an_ordinary_user_gets_the_same(level, readable_copy):
    if os.getuid():
        pytest.skip("not run: the other tests are an ordinary user's already")
    python = "/usr/bin/python3"
    switch = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", python]
    if not shutil.which("setpriv") or not Path(python).exists():
        pytest.skip("not run: setpriv")
    check = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if subprocess.run(check, check=False).returncode:
        pytest.skip(f"not run: {python} of 3.11 or later")
    need(level)
    script = SCRIPT if level == "namespaces" else FILTER.format(refused=[UNSHARE]) + SCRIPT
    chosen, _, statuses = choose(*switch, script=script, path=readable_copy)
    assert (chosen, statuses) == (level, VERDICTS)
