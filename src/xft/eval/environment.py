"""ENVIRONMENTS: venvs apart from xft's own, for benchmarks whose programs need pinned versions of many libraries.

`xft doctor --setup NAME` makes one under the cache from a requirements file that xft ships. One that was not finished,
or whose requirements are no longer those shipped, counts as absent.

To add one, write its requirements file into `xft/eval/environments/` and register it here.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from xft.errors import DataError, FetchError
from xft.fetch import cache_dir
from xft.registry import Registry
from xft.stage import locked

MARK = "xft-environment.json"
DOWNLOAD_S = 30.0
STDERR = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """A file that programs read and no package brings."""

    path: str
    """Its place in the environment's folder."""
    url: str
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """What an environment is made of."""

    requirements: Path
    python: str
    """The interpreter's version that the requirements are for, such as 3.11."""
    libraries: tuple[str, ...]
    """Distributions whose versions are named."""
    files: tuple[DataFile, ...] = ()
    """Those that can't be had don't stop the setup."""

    def digest(self) -> str:
        """Return the sha256 of the requirements."""
        return hashlib.sha256(self.requirements.read_bytes()).hexdigest()


SEABORN_DATA = "https://raw.githubusercontent.com/mwaskom/seaborn-data/71e2436a092d714350de0fc409ca8a8714e7e78f"

ENVIRONMENTS: Registry[Environment] = Registry("environment")
ENVIRONMENTS.register("ds1000")(
    Environment(
        requirements=Path(str(resources.files("xft") / "eval" / "environments" / "ds1000.txt")),
        python="3.11",
        libraries=(
            *("numpy", "pandas", "scipy", "scikit-learn", "matplotlib", "seaborn"),
            *("statsmodels", "xgboost", "gensim", "tensorflow-cpu", "torch"),
        ),
        files=tuple(
            DataFile(path=f"seaborn-data/{name}.csv", url=f"{SEABORN_DATA}/{name}.csv", sha256=digest)
            for name, digest in {
                "exercise": "d67ff5896d7d262bba3ec0bd7a8db410e56afc96a0436e08dfe53016d5f1e4e6",
                "penguins": "e07636bd8af74260099ea2f8678e2eabbf35def579940cc76f67061ee16c06c1",
                "planets": "a6d10044887e17396974525a366f5fa2e4b34df70f491e64eb9943de0e3d3825",
                "tips": "e54cc4d2ce1bff65d32ca60b3e4b802e06bde1d7e7caf6f796f6bf7370e863b0",
            }.items()
        ),
    )
)


def setup(name: str) -> str:
    """Install an environment unless it is there; return a line that says where, with which versions, what it lacks.

    Files that an earlier setup could not fetch are tried again. Shows pip's progress on stderr.

    Raises:
        UnknownNameError: no such environment.
        DataError: this machine lacks the Python version that it needs.
        FetchError: it could not be installed.
    """
    environment, folder = ENVIRONMENTS[name], folder_of(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock"), wait=math.inf):  # nobody else sets the same environment up
        if _absence(name):
            _install(name, environment, folder)
        lacking: dict[str, list[str]] = {}
        for file in environment.files:
            if reason := _fetch(file, folder / file.path):
                lacking.setdefault(reason, []).append(file.path)
    found = versions_of(name)
    named = ["python", *environment.libraries]
    line = f"{name}: {folder} ({', '.join(f'{each} {found[each]}' for each in named if each in found)})"
    if lacking:
        missing = "; ".join(f"{', '.join(paths)} ({reason})" for reason, paths in lacking.items())
        line += f"; not had, so programs that read them can't run: {missing}; set it up again to retry"
    return line


def python_of(name: str) -> Path:
    """Return an environment's interpreter.

    Raises:
        UnknownNameError: no such environment.
        DataError: it is not there.
    """
    if absence := _absence(name):
        raise DataError(f"{name} needs libraries of its own, and {absence}; run `xft doctor --setup {name}`")
    return folder_of(name) / "bin" / "python"


def folder_of(name: str) -> Path:
    """Return the folder that holds an environment, or will."""
    return cache_dir() / "environments" / name


def versions_of(name: str) -> Mapping[str, str]:
    """Return the versions of an environment's interpreter, as `python`, and of its distributions; {} without it."""
    if _absence(name):
        return {}
    packages = [str(path) for path in folder_of(name).glob("lib/python*/site-packages")]
    found = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions(path=packages)}
    return {**found, "python": _mark(name)["python"]}


def contents_of(name: str) -> str:
    """Return a hash of what an environment holds: requirements, interpreter, fetched files; "" without it."""
    if _absence(name):
        return ""
    return hashlib.sha256(json.dumps([_mark(name), lacking_of(name)], sort_keys=True).encode()).hexdigest()


def lacking_of(name: str) -> Sequence[str]:
    """Return those of an environment's files that could not be fetched."""
    return [file.path for file in ENVIRONMENTS[name].files if not (folder_of(name) / file.path).is_file()]


def _absence(name: str) -> str:
    """Say why an environment counts as absent; "" when it is there."""
    environment, folder = ENVIRONMENTS[name], folder_of(name)
    if not folder.is_dir():
        return "they are not installed"
    mark = _mark(name)
    if not mark:
        return "their installation was not finished"
    if mark["requirements"] != environment.digest():
        return "the versions it needs have changed since they were installed"
    return "" if (folder / "bin" / "python").exists() else "the Python they were installed for is gone"


def _mark(name: str) -> dict[str, Any]:
    """Read what the setup wrote when it was through."""
    try:
        mark: dict[str, Any] = json.loads((folder_of(name) / MARK).read_text())
        return mark
    except (OSError, ValueError):
        return {}


def _install(name: str, environment: Environment, folder: Path) -> None:
    """Make the venv and fill it; the mark comes last."""
    python = _interpreter(name, environment.python)
    shutil.rmtree(folder, ignore_errors=True)
    _run([python, "-m", "venv", "--without-pip", str(folder)], f"{name}: {python} can't make a venv")
    inside = str(folder / "bin" / "python")
    options = ["--only-binary=:all:", "--disable-pip-version-check", "--requirement", str(environment.requirements)]
    _run(
        [sys.executable, "-m", "pip", "--python", inside, "install", *options],
        f"{name}: pip could not install {environment.requirements}; check network and disk space and run it again",
        stdout=STDERR,
    )
    version = _run([inside, "-c", "import platform; print(platform.python_version())"], f"{name}: {inside} fails")
    mark = {"requirements": environment.digest(), "python": version.strip()}
    partial = folder / f"{MARK}.partial"
    partial.write_text(json.dumps(mark))
    partial.replace(folder / MARK)


def _interpreter(name: str, version: str) -> str:
    """Find the Python version that an environment needs."""
    if platform.python_version().startswith(f"{version}."):
        return sys.executable
    if found := shutil.which(f"python{version}"):
        return found
    raise DataError(f"{name}: its libraries need Python {version}; install python{version} and run it again")


def _run(command: Sequence[str], failure: str, *, stdout: int = subprocess.PIPE) -> str:
    """Run a command; return its output, as far as that goes into the pipe."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        errors = [line for line in reasons if line.startswith("ERROR")] or reasons
        raise FetchError(f"{failure} ({errors[-1].strip()})")
    return done.stdout or ""


def _fetch(file: DataFile, target: Path) -> str:
    """Fetch a file unless it is there; say why it can't be had, "" when it could."""
    if target.is_file():
        return ""
    try:
        with urllib.request.urlopen(file.url, timeout=DOWNLOAD_S) as response:
            content: bytes = response.read()
    except OSError as error:
        return str(getattr(error, "reason", error))
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        return f"sha256 is {digest}, expected {file.sha256}"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    partial.write_bytes(content)
    partial.replace(target)
    return ""
