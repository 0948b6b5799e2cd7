"""The candidate's side of the sandbox: confine a process, run one program in it, prove that it reached its end.

`xft.eval.sandbox` runs this file by path in a bare interpreter (no site-packages); nothing imports it:
`runner.py LEVEL FOLDER MEMORY_MB CPU_S PROOF_FD`, with the secret token's line and then the program on stdin.

    supervisor      reaps; as a subreaper it keeps every orphan below itself, where the parent finds and kills it
    └── init        level namespaces only: process 1 of a PID namespace; when it ends the kernel kills all the rest
        └── candidate    confined, then runs the program

Two channels lead to the parent. `control` (stdout at first) is closed before the program starts, so its lines can be
trusted: `ready`, `exit STATUS`, `fault TEXT`. `proof` is in the candidate's hands: what it says counts only with
the token.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
import sys
import types
from collections.abc import Callable

DISK_MB = 64
OPEN_FILES = 64
PROCESSES = 64
RESERVED_IDS = 300  # process ids that the kernel gives out once only
DEVICES = ("null", "zero", "random", "urandom")

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Start the candidate and stay until nothing is left of it."""
    level, folder = sys.argv[1:3]
    memory_mb, cpu_s, proof = map(int, sys.argv[3:])
    token, program = sys.stdin.buffer.read().split(b"\n", 1)
    control = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)

    def candidate() -> None:
        die_with_parent()
        os.setsid()
        limit_resources(level, memory_mb, cpu_s)
        if level != "unsafe":
            drop_privileges()
            filter_syscalls(level)
        say(control, "ready")
        os.close(control)
        run(program.decode("utf-8", "surrogatepass"), token, proof)

    def init() -> None:
        die_with_parent()
        isolate_files(folder)
        reap(fork(control, candidate), control)

    def supervise() -> None:
        die_with_parent()
        if level == "namespaces":
            enter_namespaces()
            os.waitpid(fork(control, init), 0)
            return
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        reap(fork(control, candidate), control)
        wait_for_orphans()

    guarded(control, supervise)


def guarded(control: int, work: Callable[[], None]) -> None:
    """Do the work and end this process; tell the parent of what failed, as long as it can be told."""
    try:
        work()
        os._exit(0)
    except BaseException as error:
        say(control, f"fault {type(error).__name__}: {error}")
    finally:
        os._exit(3)


def fork(control: int, work: Callable[[], None]) -> int:
    """Do the work in a child; return its id."""
    child = os.fork()
    if not child:
        guarded(control, work)
    return child


def reap(candidate: int, control: int) -> None:
    """Wait for the candidate, and for whatever it leaves to this process in the meantime; report its wait status."""
    while True:
        child, status = os.wait()
        if child == candidate:
            say(control, f"exit {status}")
            return


def wait_for_orphans() -> None:
    """Return when nothing is left below this process."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def say(channel: int, line: str) -> None:
    """Write one line."""
    os.write(channel, f"{line}\n".encode("utf-8", "replace"))


# --- the program ------------------------------------------------------------------------------------------------------


def run(program: str, token: bytes, proof: int) -> None:
    """Run the program to its end and say how it went; only a program that gets there says `passed` and the token.

    The module is not called `__main__`: demonstrations under `if __name__ == "__main__"` are not run.
    """
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = sys.modules["__main__"] = module
    sys.argv = ["candidate"]
    me = os.getpid()
    try:
        exec(compile(program, "<candidate>", "exec", dont_inherit=True), module.__dict__)
        report = b"passed " + token
    except MemoryError:
        report = b"memory MemoryError"
    except SystemExit:
        report = b"exited SystemExit before the end of the tests"
    except BaseException as error:
        report = b"failed " + describe(error).encode("utf-8", "replace")[:2000]
    if os.getpid() == me:
        os.write(proof, report)


def describe(error: BaseException) -> str:
    """Name the error and the last line of the program that it passed through."""
    line, trace = 0, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == "<candidate>":
            line = trace.tb_lineno
        trace = trace.tb_next
    try:
        text = str(error)
    except BaseException:  # the candidate may raise what it likes, also from __str__
        text = ""
    return f"{type(error).__name__}: {text[:1000]}" + (f" (line {line})" if line else "")


# --- confinement ------------------------------------------------------------------------------------------------------

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 22, 24, 36, 38


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


def die_with_parent() -> None:
    """Die when the parent dies, however it dies."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def limit_resources(level: str, memory_mb: int, cpu_s: int) -> None:
    """Set limits on the process.

    Processes are counted per user: in a user namespace of its own that is the candidate's count alone; at level unsafe
    it can start none. The kernel exempts root from this limit.
    """
    limits = {
        resource.RLIMIT_AS: memory_mb << 20,
        resource.RLIMIT_FSIZE: DISK_MB << 20,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    if level != "seccomp":  # where the filter refuses new processes, and threads may be as many as memory allows
        limits[resource.RLIMIT_NPROC] = PROCESSES if level == "namespaces" else 0
    for which, value in limits.items():
        ceiling = resource.getrlimit(which)[1]
        value = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        resource.setrlimit(which, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))


def drop_privileges() -> None:
    """Give up all capabilities, and the means to get any back."""
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails for an ordinary user, who has none to drop
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    check(libc.capset(header, nothing), "capset")
    prctl(PR_SET_NO_NEW_PRIVS, 1)


# --- namespaces -------------------------------------------------------------------------------------------------------

NEW_NAMESPACES = 0x10000000 | 0x20000000 | 0x40000000 | 0x00020000 | 0x08000000 | 0x04000000  # user pid net mnt ipc uts
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1 << 5, 1 << 12, 1 << 14, 1 << 18
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442  # the same on all architectures
AT_FDCWD, AT_RECURSIVE, OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC, MOVE_MOUNT_F_EMPTY_PATH = -100, 0x8000, 1, 0o2000000, 4


def enter_namespaces() -> None:
    """Leave the machine's users, processes, network, mounts, IPC and host name; the next child is process 1."""
    user, group = os.getuid(), os.getgid()
    check(libc.unshare(NEW_NAMESPACES), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def isolate_files(folder: str) -> None:
    """Make all files read-only but `folder`, which becomes an empty private disk; hide devices and processes.

    Root inside is still the owner of root's files, also of disks and kernel settings: hence no devices, read-only proc.
    """
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    devices = {name: open_tree(f"/dev/{name}") for name in DEVICES}
    attributes = struct.pack("QQQQ", MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)
    syscall(SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes), what="mount_setattr")
    mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, f"size={DISK_MB}m,nr_inodes=4096,mode=700")
    mount("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_NODEV, "size=16m,nr_inodes=256,mode=755")
    for name, tree in devices.items():
        os.close(os.open(f"/dev/{name}", os.O_CREAT | os.O_WRONLY))
        target = f"/dev/{name}".encode()
        syscall(SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH, what=f"move_mount {name}")
        os.close(tree)
    os.mkdir("/dev/shm")
    try:
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        limit_process_ids()
        mount(None, "/proc", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    except PermissionError:  # inside most containers
        mount("tmpfs", "/proc", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k")
    os.chdir(folder)


def limit_process_ids() -> None:
    """Give this PID namespace few ids, a limit that holds for root too.

    Before Linux 6.14 the setting is the whole machine's, and root's to change even here: it must not be touched.
    """
    release = os.uname().release.split(".")
    if (int(release[0]), int(release[1])) >= (6, 14):
        with contextlib.suppress(OSError), open("/proc/sys/kernel/pid_max", "w") as file:
            file.write(str(RESERVED_IDS + PROCESSES))


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mount, bind or change a mount."""
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    check(libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]), f"mount {kind} on {target}")


def open_tree(path: str) -> int:
    """Return a detached copy of a mount, which keeps its own flags."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
    return syscall(SYS_OPEN_TREE, AT_FDCWD, path.encode(), flags, what=f"open_tree {path}")


def syscall(number: int, *arguments: int | bytes, what: str) -> int:
    """Make a system call that the C library may not know."""
    wide = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    return check(int(libc.syscall(ctypes.c_long(number), *wide)), what)


# --- system call filter -----------------------------------------------------------------------------------------------

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

# Numbers on x86_64 and aarch64; None: the call does not exist there.
REFUSED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
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
}

# Level seccomp has no wall around the process, so these too: new processes, changes to files, reach to other processes.
REFUSED_WITHOUT_NAMESPACES: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "creat": (85, None),
    "truncate": (76, 45),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "mknod": (133, None),
    "mknodat": (259, 33),
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
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
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

CLONE, CLONE3, OPEN, OPENAT, OPENAT2 = (56, 220), (435, 435), (2, None), (257, 56), (437, 437)
KILL, TGKILL, PRLIMIT64 = (62, 129), (234, 131), (302, 261)
CLONE_NEWUSER, CLONE_THREAD = 0x10000000, 0x00010000
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL_PROCESS, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026


def filter_syscalls(level: str) -> None:
    """Refuse system calls from here on; they fail with EPERM.

    Raises:
        OSError: this processor is not one of ARCHITECTURES.
    """
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        raise OSError(f"no system call filter for {machine}")
    column, audit = ARCHITECTURES[machine]
    code = bpf_program(level, column, audit)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    check(libc.prctl(PR_SET_SECCOMP, 2, header, 0, 0), "seccomp")


def bpf_program(level: str, column: int, audit: int) -> bytes:
    """Return the filter for one architecture, given as its column in the tables and its audit number."""
    code = [bpf(LOAD, 4), bpf(JUMP_EQUAL, audit, 1, 0), bpf(RETURN, KILL_PROCESS), bpf(LOAD, 0)]
    if column == 0:  # x32 numbers would pass by the rest
        code += [bpf(JUMP_AT_LEAST, 0x40000000, 0, 1), bpf(RETURN, EPERM)]

    def refuse(call: tuple[int | None, int | None], with_error: int = EPERM) -> None:
        if (number := call[column]) is not None:
            code.extend([bpf(JUMP_EQUAL, number, 0, 1), bpf(RETURN, with_error)])

    def decide(call: tuple[int | None, int | None], argument: int, test: int, value: int, yes: int, no: int) -> None:
        if (number := call[column]) is not None:
            code.extend([bpf(JUMP_EQUAL, number, 0, 4), bpf(LOAD, 16 + 8 * argument)])
            code.extend([bpf(test, value, 0, 1), bpf(RETURN, yes), bpf(RETURN, no)])

    for call in REFUSED.values():
        refuse(call)
    refuse(CLONE3, ENOSYS)  # its flags are in memory, out of the filter's sight; the C library falls back to clone
    if level == "namespaces":
        decide(CLONE, 0, JUMP_ANY_BIT, CLONE_NEWUSER, EPERM, ALLOW)
    else:
        for call in REFUSED_WITHOUT_NAMESPACES.values():
            refuse(call)
        refuse(OPENAT2, ENOSYS)
        decide(CLONE, 0, JUMP_ANY_BIT, CLONE_THREAD, ALLOW, EPERM)
        decide(OPEN, 1, JUMP_ANY_BIT, WRITES, EPERM, ALLOW)
        decide(OPENAT, 2, JUMP_ANY_BIT, WRITES, EPERM, ALLOW)
        decide(KILL, 0, JUMP_EQUAL, os.getpid(), ALLOW, EPERM)
        decide(TGKILL, 0, JUMP_EQUAL, os.getpid(), ALLOW, EPERM)
        decide(PRLIMIT64, 0, JUMP_EQUAL, 0, ALLOW, EPERM)
    return b"".join([*code, bpf(RETURN, ALLOW)])


def bpf(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """Return one instruction."""
    return struct.pack("HBBI", code, if_true, if_false, value)


if __name__ == "__main__":
    main()
