"""Level namespaces: own users, processes, network, mounts, IPC and host name for each candidate.

The server leaves the machine's files once: its root holds, read-only, what candidates may see. Each candidate then gets
fresh namespaces, private disks at /tmp and /dev/shm, and a /proc of its own processes.

Runs in a bare interpreter, 3.9 or later.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
from collections.abc import Mapping, Sequence

from .confine import check, libc, syscall

FOLDER = "/tmp/work"
"""The candidate's working folder."""
LIBRARIES = "/libraries"

DEVICES = ("null", "zero", "random", "urandom")
RESERVED_IDS = 300  # process ids that the kernel gives out once only
SPARE_IDS = 16  # a bomb has to be seen to be more than is allowed, not only to be held
SHARED_MB = 16

CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000
FRESH = CLONE_NEWUSER | CLONE_NEWNS | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000  # pid net ipc uts
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442  # the same on all architectures
SYS_CLONE, SYS_PIVOT_ROOT = {"x86_64": (56, 155), "aarch64": (220, 41)}.get(os.uname().machine, (-1, -1))
AT_FDCWD, AT_RECURSIVE, OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC, MOVE_MOUNT_F_EMPTY_PATH = -100, 0x8000, 1, 0o2000000, 4
MNT_DETACH = 2


KEPT = "/kept"
"""Where the root keeps what is in sight below /tmp, to be put back over each private disk."""


# --- once, in the server ----------------------------------------------------------------------------------------------


def enter_root(sight: Sequence[str], links: Mapping[str, str]) -> list[str]:
    """Leave the machine's files for a root that holds `sight`, read-only, and /tmp; return what of `sight` is in there.

    Root inside is still the owner of root's files, also of disks: hence no devices, and nothing to write.
    """
    user, group = os.getuid(), os.getgid()
    check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare")
    map_ids(user, group)
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    kept = [path for path in sight if path.startswith("/tmp/")]
    places = {path: f"{KEPT}/{kept.index(path)}" if path in kept else path for path in sight}
    symbolic = {path: os.readlink(path) for path in sight if os.path.islink(path) and path not in kept}
    trees = {place: open_tree(path) for path, place in places.items() if path not in symbolic}
    proc, devices = open_tree("/proc"), {f"/dev/{name}": open_tree(f"/dev/{name}") for name in DEVICES}
    folders = [
        "/tmp",
        "/proc",
        "/dev/shm",
        *(places[path] for path in sight if path not in symbolic and os.path.isdir(path)),
    ]
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=16m,mode=755")
    os.chdir("/tmp")
    for place in (*trees, *devices, *folders):
        make_place("." + place, place in folders)
    for place, target in {**symbolic, **links, "/dev/fd": "/proc/self/fd"}.items():
        os.makedirs("." + os.path.dirname(place), exist_ok=True)
        os.symlink(target, "." + place)
    for place, tree in trees.items():
        move_mount(tree, "." + place)
    syscall(SYS_PIVOT_ROOT, b".", b".", what="pivot_root")
    check(libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")
    read_only("/")
    for place, tree in {"/proc": proc, **devices}.items():
        move_mount(tree, place)
    private_disk(256, kept)
    return kept


def read_only(path: str) -> None:
    """Let nothing be written from here on down, nor devices be opened."""
    flags = struct.pack("QQQQ", MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)
    syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), AT_RECURSIVE, flags, len(flags), what=f"mount_setattr {path}")


def make_place(path: str, folder: bool) -> None:
    """Make what something can be mounted on."""
    os.makedirs(path if folder else os.path.dirname(path), exist_ok=True)
    if not folder:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))


def open_tree(path: str) -> int:
    """Return a detached copy of the mounts from a path on, which keep their own flags."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE
    return syscall(SYS_OPEN_TREE, AT_FDCWD, path.encode(), flags, what=f"open_tree {path}")


def move_mount(tree: int, target: str) -> None:
    """Attach a detached mount."""
    syscall(SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, target.encode(), MOVE_MOUNT_F_EMPTY_PATH, what=f"move_mount {target}")
    os.close(tree)


# --- for each candidate -----------------------------------------------------------------------------------------------


def fork() -> int:
    """Fork into fresh namespaces, as process 1 there; for a process with a single thread.

    Without Python's own care around a fork: the child may make system calls and fork in the ordinary way, and no more.
    """
    return syscall(SYS_CLONE, FRESH | signal.SIGCHLD, 0, 0, 0, 0, what="clone")


def settle(user: int, group: int, disk_mb: int, tasks: int, kept: Sequence[str]) -> None:
    """Take private disks and a view of this namespace's processes alone; be who the server is, with no one else."""
    map_ids(user, group)
    private_disk(disk_mb, kept)
    mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, f"size={SHARED_MB}m,nr_inodes=256,mode=1777")
    try:
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        limit_process_ids(tasks)
    except PermissionError:  # inside most containers, whose own is left, with their processes' names
        pass
    read_only("/proc")
    os.mkdir(FOLDER, 0o700)


def map_ids(user: int, group: int) -> None:
    """Be the same user and group inside a user namespace; others are not known there."""
    for name, text in (
        ("setgroups", b"deny"),
        ("uid_map", b"%d %d 1" % (user, user)),
        ("gid_map", b"%d %d 1" % (group, group)),
    ):
        put(f"/proc/self/{name}", text)


def private_disk(megabytes: int, kept: Sequence[str]) -> None:
    """Put an empty disk over /tmp, but what must stay in sight."""
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={megabytes}m,nr_inodes=16384,mode=1777")
    for index, path in enumerate(kept):
        make_place(path, os.path.isdir(f"{KEPT}/{index}"))
        mount(f"{KEPT}/{index}", path, None, MS_BIND | MS_REC)


def limit_process_ids(tasks: int) -> None:
    """Give this PID namespace few ids, a limit that holds for root too.

    Before Linux 6.14 the setting is the whole machine's, and root's to change even here: it must not be touched.
    """
    release = os.uname().release.split(".")
    if (int(release[0]), int(release[1])) >= (6, 14):
        with contextlib.suppress(OSError):
            put("/proc/sys/kernel/pid_max", b"%d" % (RESERVED_IDS + tasks + SPARE_IDS))
            put("/proc/sys/kernel/ns_last_pid", b"%d" % RESERVED_IDS)  # or the first round has them all


def put(path: str, text: bytes) -> None:
    """Write a setting of the kernel."""
    file = os.open(path, os.O_WRONLY)
    try:
        os.write(file, text)
    except OSError as error:
        raise OSError(error.errno, f"{path}: {error.strerror}") from None
    finally:
        os.close(file)


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mount, bind or change a mount."""
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    check(libc.mount(*texts[:3], flags, texts[3]), f"mount {kind} on {target}")
