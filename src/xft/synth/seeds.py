"""Read seed documents from files, folders, git repositories, JSONL, Parquet or the hub, each with licence and language.

What can't serve is not silently left out: it is given as `Skipped` with its reason.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xft.data.sources import SUFFIXES, BadRecordError, read_records, resolve_files
from xft.errors import DataError
from xft.fetch import HUB_NAME
from xft.recipe import DataSource
from xft.synth.config import SeedSource
from xft.synth.licenses import FILES, LicenseFiles, license_of_header
from xft.synth.task import Document

MAX_BYTES = 1 << 20
"""Of a document; larger files are tables and generated code."""
MAX_LINE = 2000
"""Characters of a line; longer ones are data or minified code."""
EXTENSIONS = {
    ".py": "python", ".pyi": "python", ".js": "javascript", ".mjs": "javascript", ".ts": "typescript",
    ".java": "java", ".cpp": "cpp", ".cc": "cpp", ".cxx": "cpp", ".hpp": "cpp", ".c": "c", ".h": "c", ".cs": "csharp",
    ".rs": "rust", ".go": "go", ".php": "php", ".swift": "swift", ".rb": "ruby", ".kt": "kotlin", ".scala": "scala",
    ".sh": "shell", ".sql": "sql", ".r": "r", ".jl": "julia", ".lua": "lua", ".hs": "haskell", ".md": "text",
    ".rst": "text", ".txt": "text",
}  # fmt: skip
ALIASES = {"py": "python", "python3": "python", "js": "javascript", "c++": "cpp", "c#": "csharp", "bash": "shell"}
IGNORED = {"__pycache__", "node_modules", "site-packages"}
"""Folders that hold no code of their own; hidden ones are left out too."""
STDLIB = "stdlib"
"""Names Python's own library as a source."""
NO_CODE = ["test", "tests", "idlelib", "lib2to3", "pydoc_data", "turtledemo", "encodings", "config-*", "__phello__"]
"""Folders of it that hold tests, a program, grammars and tables."""
TEXTS = ("content", "code", "text", "instruction")
RESPONSES = ("response", "output", "completion")
LICENSES = ("license", "licenses", "max_stars_repo_licenses", "detected_licenses")


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A file or record that can't serve as a seed."""

    where: str
    reason: str


def read_seeds(sources: Sequence[SeedSource], licenses: Sequence[str] = ()) -> tuple[list[Document], list[Skipped]]:
    """Return all documents that can serve, each text once, and what can't; `licenses` are those allowed, if any.

    Raises:
        DataError: a source that does not exist or can't be read, or no document at all.
        FetchError: a hub name that can't be had.
    """
    documents: dict[str, Document] = {}
    skipped: list[Skipped] = []
    for source in sources:
        for item in _read(source):
            if isinstance(item, Document) and licenses and not _allowed(item.license, licenses):
                item = Skipped(where=item.source, reason=f"licence {item.license}")
            if isinstance(item, Document) and item.sha256 in documents:
                item = Skipped(where=item.source, reason="the same text as another seed")
            if isinstance(item, Document):
                documents[item.sha256] = item
            else:
                skipped.append(item)
    if not documents:
        names = ", ".join(source.path for source in sources)
        why = f"; the first of {len(skipped)} left out: {skipped[0].where}: {skipped[0].reason}" if skipped else ""
        raise DataError(f"{names}: no seed document in it{why}")
    return list(documents.values()), skipped


def _allowed(license: str, licenses: Sequence[str]) -> bool:
    """Tell whether a licence, or an SPDX expression without brackets, is covered by those allowed."""
    choices = (choice.split(" AND ") for choice in license.split(" OR "))
    return any(all(part in licenses for part in parts) for parts in choices)


def seeds_digest(documents: Sequence[Document]) -> str:
    """Return one sha256 over all that pairs depend on."""
    parts = [(each.sha256, each.source, each.license, each.language, each.response) for each in documents]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read(source: SeedSource) -> Iterator[Document | Skipped]:
    if source.path == STDLIB:
        own = {"path": sysconfig.get_path("stdlib"), "license": "PSF-2.0", "exclude": [*NO_CODE, *source.exclude]}
        source = source.model_copy(update=own)
    path = Path(source.path)
    if path.is_dir():
        empty = True
        for item in _folder(source, path.resolve()):
            empty = False
            yield item
        if empty and any(file.name.endswith(SUFFIXES) for file in path.rglob("*")):  # a data set, not a program's tree
            yield from _records(source)
    elif path.name.endswith(SUFFIXES) or (not path.exists() and HUB_NAME.match(source.path)):
        yield from _records(source)
    elif path.is_file():
        yield _file(path.resolve(), path.name, source, LicenseFiles(path.resolve().parent))
    else:
        raise DataError(
            f"{source.path}: no such seeds; give a file, a folder, a git repository, JSONL, Parquet or a hub data set"
        )


def _folder(source: SeedSource, root: Path) -> Iterator[Document | Skipped]:
    licenses = LicenseFiles(root)
    for path in _tracked(root) if (root / ".git").exists() else _below(root):
        within = path.relative_to(root)
        left_out = any(fnmatch.fnmatch(part, pattern) for part in within.parts for pattern in source.exclude)
        if path.suffix.lower() not in EXTENSIONS or left_out or FILES.fullmatch(path.name):
            continue
        if not path.is_symlink():  # it may lead out of the folder
            yield _file(path, f"{root.name}/{within}", source, licenses)


def _tracked(root: Path) -> list[Path]:
    """Return the files that git knows."""
    try:
        # The folder may be anybody's, and its configuration may name a program to be run for this
        command = ["git", "-C", str(root), "-c", "core.fsmonitor=false", "ls-files", "-z"]
        listed = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or str(error).encode()
        raise DataError(f"{root}: git can't list its files ({said.decode(errors='replace').strip()})") from None
    return sorted(root / name.decode(errors="surrogateescape") for name in listed.split(b"\0") if name)


def _below(root: Path) -> list[Path]:
    """Return a folder's files, without hidden ones and copies of other people's code."""
    found = []
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if path.is_file() and not any(part.startswith(".") or part in IGNORED for part in parts):
            found.append(path)
    return found


def _file(path: Path, where: str, source: SeedSource, licenses: LicenseFiles) -> Document | Skipped:
    where = where.encode(errors="replace").decode()
    try:
        if path.stat().st_size > MAX_BYTES:
            return Skipped(where=where, reason=f"larger than {MAX_BYTES >> 20} MB")
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        return Skipped(where=where, reason=f"unreadable ({error.strerror})")
    except UnicodeDecodeError as error:
        return Skipped(where=where, reason=f"not UTF-8 ({error.reason} at byte {error.start})")
    license = license_of_header(text) or licenses.of(path.parent) or source.license or "unknown"
    return _document(text, where, license, EXTENSIONS.get(path.suffix.lower(), "unknown"))


def _document(text: str, where: str, license: str, language: str, response: str = "") -> Document | Skipped:
    text = text.removeprefix("\ufeff")
    if fault := _fault(text):
        return Skipped(where=where, reason=fault)
    return Document(text=text, source=where, license=license, language=language, response=response)


def _fault(text: str) -> str:
    """Say why a text can't be a seed, "" when it can."""
    if not text.strip():
        return "empty"
    if "\0" in text:
        return "binary (a NUL byte)"
    if len(text) > MAX_BYTES:
        return f"larger than {MAX_BYTES >> 20} MB"
    if max(map(len, text.splitlines())) > MAX_LINE:
        return f"a line of more than {MAX_LINE} characters"
    if any(0xD800 <= ord(character) < 0xE000 for character in text):
        return "half a surrogate pair, which is no text"
    return ""


def _records(source: SeedSource) -> Iterator[Document | Skipped]:
    for path in resolve_files(DataSource(path=source.path, revision=source.revision)):
        try:
            for where, record in read_records(path):
                where = f"{path.name}{where.removeprefix(str(path))}"
                if isinstance(record, BadRecordError):
                    yield Skipped(where=where, reason=str(record))
                elif not isinstance(record, dict):
                    yield Skipped(where=where, reason="not an object with named fields")
                else:
                    yield _record(record, where, source)
        except DataError as error:  # a broken file does not end a run that has others
            yield Skipped(where=path.name, reason=str(error).removeprefix(f"{path}: "))


def _record(record: dict[str, Any], where: str, source: SeedSource) -> Document | Skipped:
    columns = (source.column,) if source.column else TEXTS
    text = next((record[name] for name in columns if isinstance(record.get(name), str)), None)
    if text is None:
        return Skipped(where=where, reason=f"no text in {' or '.join(columns)}")
    response = next((record[name] for name in RESPONSES if isinstance(record.get(name), str)), "")
    license = next((name for name in map(_license, map(record.get, LICENSES)) if name), source.license) or "unknown"
    return _document(text, where, license, _language(record), response)


def _license(value: Any) -> str:
    """Read a licence field: a name, or a list of them."""
    names = value if isinstance(value, list) else [value]
    return " AND ".join(sorted({name for name in names if isinstance(name, str) and name}))


def _language(record: dict[str, Any]) -> str:
    """Read a language field, else take the language by the extension of the record's path."""
    for name in ("language", "lang", "programming_language"):
        if isinstance(named := record.get(name), str) and named:
            return ALIASES.get(named.lower(), named.lower())
    meta = record.get("meta")
    if isinstance(meta, dict) and isinstance(meta.get("language"), str):
        return str(meta["language"])
    for name in ("path", "max_stars_repo_path", "file_path", "source"):
        if isinstance(record.get(name), str) and (known := EXTENSIONS.get(Path(record[name]).suffix.lower())):
            return known
    return "unknown"
