"""Find compilers, interpreters and libraries on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 60.0
"""For a program to say its version; it may be its first start on a busy machine."""

Finder = Callable[[], str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Toolchain:
    """What a language needs, and which version of it is here."""

    programs: Mapping[str, str] = field(default_factory=dict)
    """Paths by the names that commands use."""
    version: str = ""
    fault: str = ""
    """What is missing or broken, with the remedy; "" when all was found."""


def find_toolchain(finders: Mapping[str, Finder], version: Sequence[str], package: str) -> Toolchain:
    """Look for everything, and ask it for its version with a command in which `{name}` stands for a path."""
    found = {name: find() for name, find in finders.items()}
    programs = {name: path for name, path in found.items() if path is not None}
    if missing := [name for name in found if name not in programs]:
        return Toolchain(programs=programs, fault=f"no {' and no '.join(missing)} found; install {package}")
    argv = [part.format(**programs) for part in version]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=True, errors="replace")
    except (OSError, subprocess.SubprocessError) as error:
        return Toolchain(programs=programs, fault=f"{argv[0]} does not run ({error}); install {package}")
    lines = (done.stdout + done.stderr).strip().splitlines()
    return Toolchain(programs=programs, version=lines[0].strip() if lines else "unknown")


def on_path(*names: str) -> Finder:
    """Look for the first of several programs."""
    return lambda: next((path for name in names if (path := shutil.which(name))), None)


def java_library(name: str) -> Finder:
    """Look for an archive of classes in CLASSPATH, then where Debian puts them."""

    def find() -> str | None:
        listed = [Path(part) for part in os.environ.get("CLASSPATH", "").split(os.pathsep)]
        places = [*listed, *sorted(Path("/usr/share/java").glob(f"{name}*.jar"))]
        return next((str(path) for path in places if path.name.startswith(name) and path.is_file()), None)

    return find


def rust_compiler() -> str | None:
    """Find rustc itself: the one in PATH may be rustup's, which reads the user's settings and may want the network."""
    path = shutil.which("rustc")
    if path is None:
        return None
    try:
        done = subprocess.run([path, "--print", "sysroot"], capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return path
    real = Path(done.stdout.strip(), "bin", "rustc")
    return str(real) if real.is_file() else path
