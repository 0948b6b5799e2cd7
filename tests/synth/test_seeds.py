from __future__ import annotations

import gzip
import json
import os
import subprocess
from pathlib import Path

import pytest

from hub_cache import cached_repository, offline
from xft.errors import DataError
from xft.synth.config import SeedSource
from xft.synth.seeds import read_seeds, seeds_digest


def sources(*paths: Path, **given: str) -> list[SeedSource]:
    return [SeedSource(path=str(path), **given) for path in paths]  # type: ignore[arg-type]


def test_a_folder_gives_its_code_with_language_and_licence(tmp_path: Path) -> None:
    root = tmp_path / "project"
    (root / "sub").mkdir(parents=True)
    (root / "LICENSE.txt").write_text("Apache License Version 2.0")
    (root / "a.py").write_text("x = 1\n")
    (root / "sub" / "b.rs").write_text("// SPDX-License-Identifier: MIT\nfn main() {}\n")
    (root / "picture.png").write_bytes(b"\x89PNG")
    for hidden in (".git2", "__pycache__", "node_modules"):
        (root / hidden).mkdir()
        (root / hidden / "c.py").write_text("y = 2\n")
    documents, skipped = read_seeds(sources(root))
    assert [(each.source, each.language, each.license) for each in documents] == [
        ("project/a.py", "python", "Apache-2.0"),
        ("project/sub/b.rs", "rust", "MIT"),
    ]
    assert skipped == []


def test_of_a_git_repository_only_what_it_tracks_is_read(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    root.mkdir()
    (root / "kept.py").write_text("x = 1\n")
    (root / "draft.py").write_text("y = 2\n")
    for command in (["init", "-q"], ["add", "kept.py"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    subprocess.run(["git", "-C", str(root), "config", "core.fsmonitor", str(program)], check=True)
    documents, _ = read_seeds(sources(root, license="MIT"))
    assert [(each.source, each.license) for each in documents] == [("repository/kept.py", "MIT")]
    assert not (tmp_path / "ran").exists()  # the folder may be anybody's


def test_records_give_text_response_licence_and_language(tmp_path: Path) -> None:
    path = tmp_path / "seeds.jsonl"
    records = [
        {"content": "fn a() {}", "path": "src/a.rs", "max_stars_repo_licenses": ["MIT", "Apache-2.0"]},
        {
            "instruction": "Add two numbers.",
            "response": "def f(): ...",
            "meta": {"language": "python"},
            "license": "CC0",
        },
        {"code": "x", "language": "C++"},
        {"nothing": 1},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + "not json\n[1]\n")
    documents, skipped = read_seeds(sources(path))
    assert [(each.text, each.response, each.license, each.language) for each in documents] == [
        ("fn a() {}", "", "Apache-2.0 AND MIT", "rust"),
        ("Add two numbers.", "def f(): ...", "CC0", "python"),
        ("x", "", "unknown", "cpp"),
    ]
    assert [each.where for each in skipped] == ["seeds.jsonl:4", "seeds.jsonl:5", "seeds.jsonl:6"]
    assert skipped[0].reason == "no text in content or code or text or instruction"


def test_names_can_be_left_out(tmp_path: Path) -> None:
    for name in ("a.py", "test_a.py", "test/b.py", "sub/test/c.py", "sub/d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"x = {name!r}\n")
    documents, skipped = read_seeds([SeedSource(path=str(tmp_path), exclude=["test", "test_*"])])
    assert [each.source.split("/", 1)[1] for each in documents] == ["a.py", "sub/d.py"]
    assert skipped == []


def test_parquet_is_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"content": ["x = 1", None], "lang": ["Python", "Python"]})
    pyarrow.parquet.write_table(table, tmp_path / "seeds.parquet")
    documents, skipped = read_seeds(sources(tmp_path / "seeds.parquet"))
    assert [(each.text, each.language, each.source) for each in documents] == [("x = 1", "python", "seeds.parquet[0]")]
    assert len(skipped) == 1


def test_a_hub_data_set_gives_documents_at_the_pinned_revision(tmp_path: Path) -> None:
    rows = {
        commit: {"train.jsonl": json.dumps({"content": f"x = {value}\n", "license": "MIT", "path": "a.py"}) + "\n"}
        for commit, value in (("a" * 40, 1), ("b" * 40, 2))
    }
    cached_repository(tmp_path, "datasets--org--files", rows)
    done = offline(
        tmp_path,
        "from xft.synth.config import SeedSource\nfrom xft.synth.seeds import read_seeds\n"
        f"for revision in (None, {'b' * 40!r}):\n"
        "    (document,), _ = read_seeds([SeedSource(path='org/files', revision=revision)])\n"
        "    print(document.text.strip(), document.license, document.language, document.source)",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"x = {value} MIT python train.jsonl:1" for value in (1, 2)]


def test_a_column_can_be_named_and_gzip_is_read(tmp_path: Path) -> None:
    path = tmp_path / "seeds.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"body": "x = 1", "text": "other"}).encode()))
    documents, _ = read_seeds(sources(path, column="body"))
    assert [each.text for each in documents] == ["x = 1"]


def test_what_can_not_serve_is_named_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes("x = 'é'".encode("latin-1"))
    (tmp_path / "wide.py").write_text("x = '" + "a" * 3000 + "'\n")
    (tmp_path / "empty.py").write_text(" \n")
    (tmp_path / "binary.py").write_bytes(b"x\0y")
    (tmp_path / "huge.py").write_bytes(b"x = 1\n" * 200_000)
    (tmp_path / "good.py").write_text("\ufeffx = 1\n")
    (tmp_path / "same.py").write_text("x = 1\n")
    os.symlink(tmp_path / "gone", tmp_path / "dangling.py")
    (tmp_path / "folder").mkdir()
    os.symlink(__file__, tmp_path / "folder" / "link.py")
    documents, skipped = read_seeds(sources(tmp_path))
    assert [each.text for each in documents] == ["x = 1\n"]
    assert {each.where.split("/")[-1]: each.reason for each in skipped} == {
        "latin.py": "not UTF-8 (invalid continuation byte at byte 5)",
        "wide.py": "a line of more than 2000 characters",
        "empty.py": "empty",
        "binary.py": "binary (a NUL byte)",
        "huge.py": "larger than 1 MB",
        "same.py": "the same text as another seed",
    }


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.py").write_text("x = 2\n")
    whole = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "a.py":
            raise PermissionError(13, "Permission denied")
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    _, skipped = read_seeds(sources(tmp_path))
    assert [each.reason for each in skipped] == ["unreadable (Permission denied)"]


def test_only_allowed_licences_are_used(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("# SPDX-License-Identifier: MIT\n")
    (tmp_path / "b.py").write_text("# SPDX-License-Identifier: GPL-3.0\n")
    documents, skipped = read_seeds(sources(tmp_path), ["MIT"])
    assert [each.license for each in documents] == ["MIT"]
    assert [each.reason for each in skipped] == ["licence GPL-3.0"]


@pytest.mark.parametrize(("license", "allowed"), [
    ("MIT OR GPL-3.0", True), ("GPL-3.0 AND MIT", False), ("BSD-3-Clause AND MIT", True),
    ("GPL-3.0 OR MIT AND BSD-3-Clause", True), ("GPL-3.0 OR MIT AND ISC", False), ("(MIT)", False),
])  # fmt: skip
def test_a_licence_of_several_is_allowed_by_its_parts(license: str, allowed: bool, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(f"# SPDX-License-Identifier: {license}\nx = 1\n")
    (tmp_path / "b.py").write_text("# SPDX-License-Identifier: MIT\ny = 2\n")
    documents, _ = read_seeds(sources(tmp_path), ["MIT", "BSD-3-Clause"])
    assert len(documents) == 1 + allowed


def test_no_seeds_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such seeds"):
        read_seeds(sources(tmp_path / "gone"))
    (tmp_path / "a.py").write_text("")
    with pytest.raises(DataError, match=r"no seed document in it; the first of 1 left out: .*a\.py: empty"):
        read_seeds(sources(tmp_path))


def test_a_broken_file_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_text('{"content": "x = 1"}\n')
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"content": "y = 2"}\n' * 99)[:-9])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    for name in ("gone.jsonl", "gone.json", "gone.parquet"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    documents, skipped = read_seeds(sources(tmp_path))  # a folder of data files
    assert "x = 1" in {each.text for each in documents}
    faults = {each.where: each.reason for each in skipped if each.reason != "the same text as another seed"}
    assert set(faults) == {"cut.jsonl.gz", "bad.parquet", "gone.jsonl", "gone.json", "gone.parquet"}
    assert faults["gone.jsonl"].startswith("not a readable file")
    assert faults["cut.jsonl.gz"].startswith("not a readable gzip file")
    assert faults["bad.parquet"].startswith("not a readable Parquet file")


def test_the_digest_tells_texts_and_licences_apart(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    first, _ = read_seeds(sources(tmp_path))
    second, _ = read_seeds(sources(tmp_path, license="MIT"))
    assert seeds_digest(first) == seeds_digest(read_seeds(sources(tmp_path))[0])
    assert seeds_digest(first) != seeds_digest(second)
