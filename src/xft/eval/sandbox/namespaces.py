"""Level namespaces: own users, processes, network, mounts, IPC, host name; all files read-only but a private disk.

Runs in a bare interpreter, 3.9 or later.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Sequence

from .confine import check, libc, syscall

DISK = "/tmp"
FOLDER = "/tmp/work"
"""The candidate's working folder."""

DEVICES = ("null", "zero", "random", "urandom")
RESERVED_IDS = 300  # process ids that the kernel gives out once only

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


def isolate_files(disk_mb: int, processes: int, keep: Sequence[str]) -> None:
    """Make all files read-only, put an empty private disk over /tmp, hide devices and processes.

    Root inside is still the owner of root's files, also of disks and kernel settings: hence no devices, read-only proc.
    `keep` are paths that must stay in sight, read-only, even where they are below /tmp.
    """
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    devices = {name: open_tree(f"/dev/{name}") for name in DEVICES}
    attributes = struct.pack("QQQQ", MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)
    syscall(SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes), what="mount_setattr")
    kept = {path: open_tree(path, AT_RECURSIVE) for path in covered(keep)}
    mount("tmpfs", DISK, "tmpfs", MS_NOSUID | MS_NODEV, f"size={disk_mb}m,nr_inodes=16384,mode=1777")
    for path, tree in kept.items():
        os.mkdir(path)
        move_mount(tree, path)
    mount("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_NODEV, "size=16m,nr_inodes=256,mode=755")
    for name, tree in devices.items():
        os.close(os.open(f"/dev/{name}", os.O_CREAT | os.O_WRONLY))
        move_mount(tree, f"/dev/{name}")
    os.symlink("/proc/self/fd", "/dev/fd")
    os.mkdir("/dev/shm")
    try:
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        limit_process_ids(processes)
        mount(None, "/proc", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    except PermissionError:  # inside most containers
        mount("tmpfs", "/proc", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k")
    os.mkdir(FOLDER, 0o700)


def covered(paths: Sequence[str]) -> list[str]:
    """Return the entries of the disk's place that hold one of the paths."""
    inside = (os.path.relpath(path, DISK).split(os.sep) for path in map(os.path.realpath, paths))
    names = {parts[0] for parts in inside if parts[0] not in ("..", ".")}
    return [path for path in (os.path.join(DISK, name) for name in sorted(names)) if os.path.isdir(path)]


def limit_process_ids(processes: int) -> None:
    """Give this PID namespace few ids, a limit that holds for root too.

    Before Linux 6.14 the setting is the whole machine's, and root's to change even here: it must not be touched.
    """
    release = os.uname().release.split(".")
    if (int(release[0]), int(release[1])) >= (6, 14):
        with contextlib.suppress(OSError), open("/proc/sys/kernel/pid_max", "w") as file:
            file.write(str(RESERVED_IDS + processes))


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mount, bind or change a mount."""
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    check(libc.mount(*texts[:3], flags, texts[3]), f"mount {kind} on {target}")


def open_tree(path: str, flags: int = 0) -> int:
    """Return a detached copy of a mount, which keeps its own flags."""
    flags |= OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
    return syscall(SYS_OPEN_TREE, AT_FDCWD, path.encode(), flags, what=f"open_tree {path}")


def move_mount(tree: int, target: str) -> None:
    """Attach a detached mount."""
    syscall(SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, target.encode(), MOVE_MOUNT_F_EMPTY_PATH, what=f"move_mount {target}")
    os.close(tree)
