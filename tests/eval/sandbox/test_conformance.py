"""What every level promises, and the list of what a level can't keep.

A check is a program that asserts from the inside; CANNOT names each level's exceptions with the reason. An exception
that no longer holds is a failure too: the list is what the documentation says remains possible.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import socket
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import MARK
from levels import LEVELS, open_box

from xft.eval.sandbox import Sandbox

SECRET = f"{MARK}-secret"

PRELUDE = """
import ctypes, os, signal, socket, subprocess, sys, threading, time
C = ctypes.CDLL(None, use_errno=True)
def refused(attempt, *arguments):
    try: attempt(*arguments)
    except (OSError, ImportError, AttributeError): return
    raise AssertionError('not refused')
def denied(result):
    assert result == -1 and ctypes.get_errno() in (1, 13, 38), f'not denied: {{result}}, errno {{ctypes.get_errno()}}'
def refused_call(result): assert result == -1, 'not refused'
PARENT, SECRET, LISTENER, PORT, OURS, HOME = {parent}, {secret!r}, {listener!r}, {port}, {ours!r}, {home!r}
KEY, CORE, NICE, CPUS, SHARED = {key}, {core}, {nice}, {cpus}, {shared}
"""

CHECKS: dict[str, str] = {
    # what a right program may count on
    "works: assertions": "assert 1 + 1 == 2",
    "works: the standard library": "import json, decimal, dataclasses, asyncio, typing, collections, sqlite3, hashlib",
    "works: threads": "t = threading.Thread(target=print); t.start(); t.join()",
    "works: an event loop": """
        import asyncio
        async def main(): return await asyncio.gather(*(asyncio.sleep(0, n) for n in range(5)))
        assert asyncio.run(main()) == list(range(5))
        """,
    "works: subprocesses": "subprocess.run(['true'], check=True, stdout=subprocess.DEVNULL)",
    "works: a process pool": """
        import concurrent.futures as futures
        with futures.ProcessPoolExecutor(2) as pool: assert list(pool.map(abs, [-1, -2])) == [1, 2]
        """,
    "works: a working folder": """
        assert os.listdir('.') == []
        with open('mine', 'w') as file: file.write('1')
        os.mkdir('folder'); os.rename('mine', 'folder/mine'); os.unlink('folder/mine'); os.rmdir('folder')
        """,
    "works: temporary files": """
        import tempfile
        with tempfile.NamedTemporaryFile('w+') as file: file.write('1')
        with tempfile.TemporaryDirectory() as folder: open(folder + '/x', 'w').close()
        """,
    "works: random numbers and the null device": """
        os.urandom(8); open('/dev/urandom', 'rb').close(); open(os.devnull, 'w').close()
        """,
    "works: signals within": """
        heard = []
        signal.signal(signal.SIGUSR1, lambda *_: heard.append(1)); os.kill(os.getpid(), signal.SIGUSR1); assert heard
        signal.signal(signal.SIGALRM, lambda *_: heard.append(2)); signal.setitimer(signal.ITIMER_REAL, 0.01)
        time.sleep(0.05); assert heard == [1, 2]
        """,
    # reading
    "no reading: a private file": "refused(open, SECRET)",
    "no reading: the project's tests": "refused(open, OURS)",
    "no reading: the home folder's files": "for path in HOME: refused(open, path)",
    "no reading: passwords": "refused(open, '/etc/shadow')",
    "no reading: the environment of the parent": "refused(open, f'/proc/{PARENT}/environ')",
    "no reading: secrets in the own environment": "assert not [k for k in os.environ if 'SECRET' in k], os.environ",
    "no reading: the parent's command line": "refused(open, f'/proc/{PARENT}/cmdline')",
    "no reading: the parent's memory": "refused(open, f'/proc/{PARENT}/mem', 'rb')",
    "no reading: the parent's descriptors": "for fd in range(8): refused(os.readlink, f'/proc/{PARENT}/fd/{fd}')",
    "no reading: memory of what started it": """
        for pid in {os.getppid(), 1} - {os.getpid(), 0}:
            refused(open, f'/proc/{pid}/mem', 'rb'); refused(open, f'/proc/{pid}/mem', 'r+b')
            for name in ('environ', 'maps', 'fd/0', 'fd/3', 'fd/4'): refused(open, f'/proc/{pid}/{name}', 'rb')
            refused(os.readlink, f'/proc/{pid}/fd/0'); refused(os.listdir, f'/proc/{pid}/root/')
        """,
    "no reading: devices": """
        for name in ('mem', 'kmsg', 'port', 'vda', 'sda', 'nvme0n1', 'fuse', 'kvm', 'ptmx', 'tty'):
            refused(open, '/dev/' + name, 'rb')
        """,
    "no reading: the kernel": """
        for name in ('kcore', 'kmsg', 'sched_debug'): refused(open, '/proc/' + name, 'rb')
        """,
    "no reading: other processes": """
        seen = [int(name) for name in os.listdir('/proc') if name.isdigit()]
        assert len(seen) <= 4 and PARENT not in seen, len(seen)
        """,
    # writing
    "no writing: files outside": """
        refused(open, SECRET, 'w'); refused(open, SECRET, 'a'); refused(open, SECRET + '-new', 'w')
        refused(os.truncate, SECRET, 0)
        """,
    "no writing: names outside": """
        refused(os.unlink, SECRET); refused(os.rename, SECRET, SECRET + '-new'); refused(os.mkdir, SECRET + '-new')
        refused(os.link, SECRET, 'mine'); refused(os.symlink, 'x', SECRET + '-new')
        refused(os.rename, SECRET, 'mine'); refused(os.mkfifo, SECRET + '-new')
        """,
    "no writing: rights and times outside": """
        refused(os.chmod, SECRET, 0); refused(os.chown, SECRET, 1, 1); refused(os.utime, SECRET, (1, 1))
        refused(os.setxattr, SECRET, b'user.x', b'1')
        """,
    "no writing: the interpreter": """
        refused(open, sys.executable, 'ab'); refused(open, os.__file__, 'a')
        refused(open, os.path.dirname(os.__file__) + '/xft-hostile-left', 'w')
        refused(os.chmod, os.__file__, os.stat(os.__file__).st_mode & 0o777)
        """,
    "no writing: the machine's temporary folders": """
        for folder in ('/var/tmp', '/run', '/run/lock', '/', '/etc', '/usr/lib', '/sys/fs/cgroup'):
            refused(open, f'{folder}/xft-hostile-left', 'w')
        """,
    "no writing: settings of the kernel": """
        for name in ('kernel/hostname', 'vm/drop_caches', 'kernel/core_pattern', 'kernel/pid_max', 'kernel/sysrq'):
            refused(open, '/proc/sys/' + name, 'r+')
        refused(open, '/proc/sysrq-trigger', 'w'); refused(open, f'/proc/{PARENT}/oom_score_adj', 'w')
        """,
    "no writing: its own walls": """
        for name in ('uid_map', 'gid_map', 'setgroups'):
            try:
                with open(f'/proc/self/{name}', 'w') as file: file.write('0 0 1' if name != 'setgroups' else 'allow')
            except OSError: continue
            raise AssertionError(name)
        """,
    # reaching other processes and machines
    "no network": """
        for family, host in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1')):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
                refused(lambda: socket.socket(family, kind).connect((host, PORT)))
        refused(socket.create_connection, ('127.0.0.1', PORT), 1)
        """,
    "no network: odd families": """
        for family in (16, 17, 29, 31, 38, 40, 44):  # netlink packet can bluetooth alg vsock xdp
            refused(socket.socket, family, socket.SOCK_RAW); refused(socket.socket, family, socket.SOCK_DGRAM)
        """,
    "no sockets of the machine": """
        refused(lambda: socket.socket(socket.AF_UNIX).connect(LISTENER))
        refused(lambda: socket.socket(socket.AF_UNIX).connect('\\0' + LISTENER[-20:]))
        """,
    "no signals to the parent": """
        refused(os.kill, PARENT, 0); refused(os.killpg, PARENT, 0)
        if os.getppid() > 1: refused(os.kill, os.getppid(), 0)
        refused(lambda: signal.pidfd_send_signal(os.pidfd_open(PARENT), 0))
        """,
    "no limits, priorities or processors of the parent": """
        import resource
        for pid in {PARENT, os.getppid()} - {0}:
            refused(resource.prlimit, pid, resource.RLIMIT_CORE, CORE)
            refused(os.setpriority, os.PRIO_PROCESS, pid, NICE); refused(os.sched_setaffinity, pid, CPUS)
            refused(os.sched_setscheduler, pid, os.SCHED_OTHER, os.sched_param(0))
        """,
    "no tracing": """
        for pid in {PARENT, os.getppid()} - {0}: refused_call(C.ptrace(0x4206, pid, 0, 0))  # seize: does not stop it
        class Span(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('size', ctypes.c_size_t)]
        buffer = ctypes.create_string_buffer(8)
        mine, theirs = Span(ctypes.addressof(buffer), 8), Span(ctypes.addressof(buffer), 8)
        for pid in (PARENT, os.getppid()):
            refused_call(C.process_vm_readv(pid, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0))
        """,
    "no shared memory of the machine": """
        refused_call(C.shmget(KEY, 4096, 0)); refused_call(C.msgget(KEY, 0)); refused_call(C.semget(KEY, 1, 0))
        buffer = ctypes.create_string_buffer(256)
        refused_call(C.shmat(SHARED['shm'], None, 0)); refused_call(C.shmctl(SHARED['shm'], 2, buffer))
        refused_call(C.msgsnd(SHARED['msg'], (ctypes.c_long * 2)(1, 1), 8, 0o4000))
        refused_call(C.msgrcv(SHARED['msg'], buffer, 8, 0, 0o4000)); refused_call(C.msgctl(SHARED['msg'], 2, buffer))
        one_more = (ctypes.c_short * 3)(0, 1, 0o4000)
        refused_call(C.semop(SHARED['sem'], one_more, 1)); refused_call(C.semtimedop(SHARED['sem'], one_more, 1, None))
        refused_call(C.semctl(SHARED['sem'], 0, 12))  # the value
        """,
    # rights
    "no rights": """
        with open('/proc/self/status') as file: status = dict(line.split(':', 1) for line in file)
        assert int(status['CapEff'], 16) == int(status['CapPrm'], 16) == int(status['CapBnd'], 16) & 0 == 0
        assert int(status['NoNewPrivs']) == 1 and int(status['Seccomp']) == 2
        """,
    "no other user": "refused(os.setuid, 12345); refused(os.setgroups, [0, 12345]); refused(os.setgid, 12345)",
    "no namespaces of its own": """
        for flag in (0x10000000, 0x00020000, 0x20000000, 0x40000000, 0x08000000, 0x04000000, 0x02000000):
            denied(C.unshare(flag))
        denied(C.setns(0, 0))
        """,
    "no mounts": """
        denied(C.mount(b'tmpfs', b'/no/such', b'tmpfs', 0, 0)); denied(C.umount2(b'/no/such', 2))
        denied(C.chroot(b'/no/such')); denied(C.mount(None, b'/no/such', None, 0x1020, None))
        denied(C.syscall(155, b'/no/such', b'/no/such')); denied(C.syscall(428, -100, b'/no/such', 1))
        denied(C.syscall(430, b'no such', 0)); denied(C.syscall(442, -100, b'/no/such', 0, 0, 0))
        """,
    "no strange system calls": """
        for number in (321, 298, 323, 425, 250, 248, 249, 246, 175, 313, 169, 163):
            denied(C.syscall(number, -1, 0, 0, 0, 0))  # bpf perf userfaultfd io_uring keys kexec modules reboot acct
        denied(C.syscall(39 | 0x40000000))  # x32
        """,
    # limits
    "a limit: open files": """
        held = []
        try:
            for _ in range(5000): held.append(os.dup(0))
        except OSError: pass
        assert len(held) < 1100, len(held)
        for fd in held: os.close(fd)
        """,
    "a limit: the size of a file": """
        try:
            with open('big', 'wb') as file:
                for _ in range(100): file.write(bytes(1 << 20))
        except OSError: os._exit(0) if not os.path.exists('big') else os.truncate('big', 0)
        else: raise AssertionError('not refused')
        """,
    "a limit: no core dumps": "import resource; assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)",
}

ALONE = "nothing counts root's processes without namespaces, so Python programs start none"
NONE = "the limit of processes is zero there, and root's alone are not counted"
SEEN = "the table of processes is the machine's; their environment and memory are closed"

# A level's exceptions: check -> why. They are tried too, so that the list stays true.
CANNOT: dict[str, dict[str, str]] = {
    "namespaces": {},
    "landlock": {
        "works: subprocesses": ALONE,
        "works: a process pool": ALONE,
        "no reading: the parent's command line": SEEN,
        "no reading: other processes": SEEN,
    },
    "unsafe": {}
    if os.getuid() == 0
    else dict.fromkeys(("works: threads", "works: subprocesses", "works: a process pool"), NONE),
}
KEY = 0x78667468


# Where there are no walls, an attempt might do harm.
CASES = [
    *((level, name) for level in LEVELS[:2] for name in CHECKS),
    *(pytest.param("unsafe", name, marks=pytest.mark.slow) for name in CHECKS if not name.startswith("no ")),
]


@pytest.fixture(scope="module")
def box(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox of a level that works here."""
    with open_box(request.param, preload=["ctypes", "signal", "socket", "subprocess", "threading"]) as sandbox:
        yield sandbox


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """What a candidate must not reach: a private file, a secret in the environment, listeners, shared memory."""
    secret = tmp_path / "private"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    monkeypatch.setenv("XFT_SECRET", SECRET)
    path = str(tmp_path / "listener")
    home = [str(each) for name in (".bashrc", ".profile", ".bash_history") if (each := Path.home() / name).exists()]
    libc = ctypes.CDLL(None)
    shared = {
        "shm": libc.shmget(KEY, 4096, 0o1600),
        "msg": libc.msgget(KEY, 0o1600),
        "sem": libc.semget(KEY, 1, 0o1600),
    }
    with contextlib.ExitStack() as stack:
        stack.callback(libc.shmctl, shared["shm"], 0, None)
        stack.callback(libc.msgctl, shared["msg"], 0, None)
        stack.callback(libc.semctl, shared["sem"], 0, 0)
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        for name in (path, "\0" + path[-20:]):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(name)
            listener.listen()
        yield {
            "parent": os.getpid(), "secret": str(secret), "listener": path, "port": tcp.getsockname()[1],
            "ours": __file__, "home": home, "key": KEY, "shared": shared,
            "core": resource.getrlimit(resource.RLIMIT_CORE), "nice": os.getpriority(os.PRIO_PROCESS, 0),
            "cpus": os.sched_getaffinity(0),
        }  # fmt: skip
    assert secret.read_text() == SECRET
    assert secret.stat().st_mode & 0o777 == 0o600
    assert sorted(each.name for each in tmp_path.iterdir()) == ["listener", "private"]


@pytest.mark.parametrize(("box", "name"), CASES, indirect=["box"])
def test_a_level_keeps_its_promises(box, name, outside):
    program = PRELUDE.format(**outside) + textwrap.dedent(CHECKS[name])
    outcome = box.run(program, seconds=10, memory_mb=1024)
    reason = CANNOT[box.level].get(name)
    if reason is None:
        assert (outcome.status, outcome.error) == ("passed", "")
    else:
        assert outcome.status != "passed", f"{name} holds at {box.level}: take it off the exceptions ({reason})"
