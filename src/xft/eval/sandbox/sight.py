"""What a confined candidate can read: the system's programs and libraries, its interpreter, its tools; no one's files.

Runs in a bare interpreter, 3.9 or later.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable

SYSTEM = (
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/usr",
    "/opt",
    "/nix/store",
    "/sys/devices/system/cpu",
)
SETTINGS = (
    "alternatives",
    "fonts",
    "group",
    "java*",
    "ld.so.*",
    "localtime",
    "mime.types",
    "nsswitch.conf",
    "passwd",
    "php*",
    "ssl/certs",
    "ssl/openssl.cnf",
    "timezone",
)
"""Of /etc."""


def in_sight(more: Iterable[str]) -> list[str]:
    """Return the paths that exist, none below another; `more` are those of interpreter, libraries and tools."""
    settings = [path for pattern in SETTINGS for path in glob.glob(f"/etc/{pattern}")]
    found: list[str] = []
    added = [path for each in more for path in (os.path.abspath(each), os.path.realpath(each))]
    for path in sorted({*SYSTEM, *settings, *added}):
        inside = any(path == each or path.startswith(each + "/") for each in found)
        if os.path.exists(path) and not inside:
            found.append(path)
    return found


def home_of(program: str) -> list[str]:
    """Return the folders that a program needs: where it is, and where its link leads, with what is beside a `bin`."""
    folders = []
    for path in (os.path.abspath(program), os.path.realpath(program)):
        folder = os.path.dirname(path)
        prefix = os.path.dirname(folder)
        shared = os.path.basename(folder) == "bin" and prefix not in ("/", os.path.expanduser("~"))
        folders.append(prefix if shared else folder)
    return folders
