"""Landlock: files in sight may be read and executed, those below one folder written; signals stay inside.

Runs in a bare interpreter, 3.9 or later.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from .confine import syscall

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on all architectures
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MAKE_CHAR, MAKE_BLOCK, REFER, TRUNCATE, IOCTL_DEV = 1 << 6, 1 << 11, 1 << 13, 1 << 14, 1 << 15
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
BIND_TCP, CONNECT_TCP = 1, 2
SCOPE_ABSTRACT_SOCKETS, SCOPE_SIGNALS = 1, 2
DEVICES = ("/dev/zero", "/dev/random", "/dev/urandom")
SIGNALS_ABI = 6
TRUNCATE_ABI = 3


def abi() -> int:
    """Return the version of the kernel's Landlock.

    Raises:
        OSError: it has none.
    """
    return syscall(CREATE_RULESET, None, 0, 1, what="landlock")


def make_ruleset(folder: str, sight: Sequence[str], version: int) -> int:
    """Return the rules, as a descriptor: below `folder` all may be done, what is in sight may be read and executed."""
    files = (1 << 13) - 1  # all rights of the first version
    for since, right in ((2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)):
        files |= right if version >= since else 0
    attributes = struct.pack("Q", files)
    attributes += struct.pack("Q", BIND_TCP | CONNECT_TCP) if version >= 4 else b""
    attributes += struct.pack("Q", SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS) if version >= SIGNALS_ABI else b""
    ruleset = syscall(CREATE_RULESET, attributes, len(attributes), 0, what="landlock ruleset")
    reading = dict.fromkeys((*sight, *DEVICES, "/proc"), EXECUTE | READ_FILE | READ_DIR)
    rules = {**reading, folder: files & ~(MAKE_CHAR | MAKE_BLOCK | IOCTL_DEV), os.devnull: files}
    for path, rights in rules.items():
        rights &= files if os.path.isdir(path) else OF_A_FILE
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        syscall(ADD_RULE, ruleset, 1, struct.pack("=Qi", rights & files, parent), 0, what=f"landlock rule {path}")
        os.close(parent)
    return ruleset


def restrict(ruleset: int) -> None:
    """Confine this process and those it starts; needs no privileges, but that none can be gained."""
    syscall(RESTRICT_SELF, ruleset, 0, what="landlock")
