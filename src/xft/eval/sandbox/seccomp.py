"""The filter of system calls. Runs in a bare interpreter, 3.9 or later."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING

from .confine import PR_SET_PDEATHSIG, PR_SET_SECCOMP, check, libc
from .landlock import SIGNALS_ABI, TRUNCATE_ABI

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

if TYPE_CHECKING:
    Numbers = tuple[int | None, int | None]  # on x86_64 and aarch64; None: the call does not exist there

# Everywhere: the network, other processes' memory and share of the machine, namespaces and mounts, the kernel's wide
# surfaces, memory that no look at processes finds.
REFUSED: dict[str, Numbers] = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "process_madvise": (440, 440),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
}

# Level landlock has no wall around the process, so these too: what Landlock does not govern of files (owners, modes,
# times, attributes), and what outlives a process.
REFUSED_WITHOUT_NAMESPACES: dict[str, Numbers] = {
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "semget": (64, 190),
    "msgget": (68, 186),
    # What others have made needs no *get: ids are small numbers, and /proc/sysvipc lists them
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "semctl": (66, 191),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
}

# Where Landlock does not scope signals; abort() is left, by which other processes of the user can be aborted too.
REFUSED_SIGNALS: dict[str, Numbers] = {
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
}

FORK, VFORK, CLONE, CLONE3 = (57, None), (58, None), (56, 220), (435, 435)
TRUNCATE, OPEN, OPENAT, OPENAT2 = (76, 45), (2, None), (257, 56), (437, 437)
KILL, TGKILL, PRLIMIT64, PRCTL = (62, 129), (234, 131), (302, 261), (157, 167)
SOCKETPAIR, FCNTL, IOCTL = (53, 199), (72, 25), (16, 29)
CLONE_NEWUSER, CLONE_THREAD = 0x10000000, 0x00010000
SOCKET_TYPE, SOCK_STREAM = 0xF, 1
SIGABRT, F_SETOWN, F_SETOWN_EX, FIOSETOWN, SIOCSPGRP, TIOCSTI = 6, 8, 15, 0x8901, 0x8902, 0x5412

LOAD, AND, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_ANY_BIT, RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL_PROCESS, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
ALL_BITS = 0xFFFFFFFF


def filter_syscalls(code: bytes) -> None:
    """Refuse system calls from here on; most fail with EPERM."""
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    check(libc.prctl(PR_SET_SECCOMP, 2, header, 0, 0), "seccomp")


def program(*, landlock: int | None, processes: bool) -> bytes:
    """Return the filter.

    Args:
        landlock: version of the Landlock that confines the process besides; None: namespaces do.
        processes: the candidate may start some.

    Raises:
        OSError: this processor is not one of ARCHITECTURES.
    """
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        raise OSError(f"no system call filter for {machine}")
    column, audit = ARCHITECTURES[machine]
    rules = Rules(column)
    rules.code += [bpf(LOAD, 4), bpf(JUMP_EQUAL, audit, 1, 0), bpf(RETURN, KILL_PROCESS), bpf(LOAD, 0)]
    if column == 0:  # x32 numbers would pass by the rest
        rules.code += [bpf(JUMP_AT_LEAST, 0x40000000, 0, 1), bpf(RETURN, EPERM)]
    for call in REFUSED.values():
        rules.refuse(call)
    rules.refuse(
        CLONE3, ENOSYS
    )  # its flags are in memory, out of the filter's sight; the C library falls back to clone
    rules.decide(SOCKETPAIR, 1, JUMP_EQUAL, SOCK_STREAM, ALLOW, EPERM, mask=SOCKET_TYPE)  # others can be sent elsewhere
    rules.decide(PRLIMIT64, 0, JUMP_EQUAL, 0, ALLOW, EPERM)
    rules.refuse_if(IOCTL, 1, (TIOCSTI,))
    if landlock is None:
        rules.decide(CLONE, 0, JUMP_ANY_BIT, CLONE_NEWUSER, EPERM, ALLOW)
        return rules.finish()
    for call in REFUSED_WITHOUT_NAMESPACES.values():
        rules.refuse(call)
    rules.decide(PRCTL, 0, JUMP_EQUAL, PR_SET_PDEATHSIG, EPERM, ALLOW)
    if processes:
        rules.decide(CLONE, 0, JUMP_ANY_BIT, CLONE_NEWUSER, EPERM, ALLOW)
    else:
        rules.refuse(FORK)
        rules.refuse(VFORK)
        rules.decide(CLONE, 0, JUMP_ANY_BIT, CLONE_THREAD, ALLOW, EPERM)
    if landlock < TRUNCATE_ABI:
        rules.refuse(TRUNCATE)
        rules.refuse(OPENAT2, ENOSYS)
        for call, flags in ((OPEN, 1), (OPENAT, 2)):
            rules.decide(call, flags, JUMP_EQUAL, os.O_TRUNC, EPERM, ALLOW, mask=os.O_TRUNC | os.O_ACCMODE)
    if landlock < SIGNALS_ABI:
        for call in REFUSED_SIGNALS.values():
            rules.refuse(call)
        rules.refuse_if(FCNTL, 1, (F_SETOWN, F_SETOWN_EX))
        rules.refuse_if(IOCTL, 1, (FIOSETOWN, SIOCSPGRP))
        if processes:
            rules.decide(KILL, 0, JUMP_EQUAL, 0, ALLOW, EPERM)
            rules.decide(TGKILL, 2, JUMP_EQUAL, SIGABRT, ALLOW, EPERM)
        else:
            rules.decide(KILL, 0, JUMP_EQUAL, os.getpid(), ALLOW, EPERM)
            rules.decide(TGKILL, 0, JUMP_EQUAL, os.getpid(), ALLOW, EPERM)
    return rules.finish()


class Rules:
    """A filter in the making, for one column of the tables."""

    def __init__(self, column: int) -> None:
        self.column = column
        self.code: list[bytes] = []

    def refuse(self, call: Numbers, with_error: int = EPERM) -> None:
        """Refuse a call whatever its arguments."""
        number = call[self.column]
        if number is not None:
            self.code += [bpf(JUMP_EQUAL, number, 0, 1), bpf(RETURN, with_error)]

    def refuse_if(self, call: Numbers, argument: int, values: tuple[int, ...]) -> None:
        """Refuse a call where an argument has one of the values; the next rules of the same call are still asked."""
        number = call[self.column]
        if number is None:
            return
        self.code += [bpf(JUMP_EQUAL, number, 0, 2 * len(values) + 2), bpf(LOAD, 16 + 8 * argument)]
        for value in values:
            self.code += [bpf(JUMP_EQUAL, value, 0, 1), bpf(RETURN, EPERM)]
        self.code.append(bpf(LOAD, 0))

    def decide(
        self, call: Numbers, argument: int, test: int, value: int, yes: int, no: int, *, mask: int = ALL_BITS
    ) -> None:
        """Decide a call by a test of the low half of one argument."""
        number = call[self.column]
        if number is not None:
            self.code += [bpf(JUMP_EQUAL, number, 0, 5), bpf(LOAD, 16 + 8 * argument), bpf(AND, mask)]
            self.code += [bpf(test, value, 0, 1), bpf(RETURN, yes), bpf(RETURN, no)]

    def finish(self) -> bytes:
        """Allow the rest."""
        return b"".join([*self.code, bpf(RETURN, ALLOW)])


def bpf(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """Return one instruction."""
    return struct.pack("HBBI", code, if_true, if_false, value)
