"""What the levels share: calls of the kernel, limits, giving up privileges.

Runs in a bare interpreter, 3.9 or later.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Mapping

OPEN_FILES = 256
FILE_MB = 64
PROCESSES = 64
COMMAND_THREADS = 512
"""Threads of all processes of other languages; a virtual machine has dozens."""

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_SECUREBITS = 1, 4, 22, 28
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
ROOT_IS_NO_ONE = 0b11101111  # securebits: no rights by user id, by setuid, kept or ambient; locked

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> int:
    """Raise OSError when a C call failed."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def prctl(option: int, *arguments: int) -> None:
    """Call prctl with integers."""
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    check(libc.prctl(option, *padded), f"prctl({option})")


def syscall(number: int, *arguments: int | bytes | None, what: str) -> int:
    """Make a system call that the C library may not know."""
    wide = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    return check(int(libc.syscall(ctypes.c_long(number), *wide)), what)


def die_with_parent() -> None:
    """Die when the parent dies, however it dies."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def limit_resources(limits: Mapping[int, int]) -> None:
    """Set limits on the process and those it starts, as far as it may have that much."""
    for which, value in {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: OPEN_FILES, **limits}.items():
        ceiling = resource.getrlimit(which)[1]
        value = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        resource.setrlimit(which, (value, value))


def drop_privileges() -> None:
    """Give up all capabilities, and the means to get any back: to be root gives none any more, nor does any program."""
    libc.prctl(PR_SET_SECUREBITS, ROOT_IS_NO_ONE, 0, 0, 0)  # refused to an ordinary user, who is no one already
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    check(libc.capset(header, nothing), "capset")
    prctl(PR_SET_NO_NEW_PRIVS, 1)
