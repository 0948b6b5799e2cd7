"""Environments are made from nothing but a wheel built here: no network."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from xft.errors import DataError, FetchError, UnknownNameError
from xft.eval import environment
from xft.eval.environment import ENVIRONMENTS, DataFile, Environment, folder_of, python_of, setup, versions_of

THIS = f"{sys.version_info[0]}.{sys.version_info[1]}"


def wheel(folder, version):
    """A package of one module, tiny."""
    path = folder / f"xft_tiny-{version}-py3-none-any.whl"
    info = f"xft_tiny-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("xft_tiny.py", f"VERSION = {version!r}\n")
        bundle.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: xft-tiny\nVersion: {version}\n")
        bundle.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        bundle.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The environment `tiny`, with one wheel and no file."""
    monkeypatch.setenv("XFT_CACHE", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    requirements = tmp_path / "tiny.txt"
    requirements.write_text(f"xft-tiny @ {wheel(tmp_path, '1.0').as_uri()}\n")
    found = Environment(requirements=requirements, python=THIS, libraries=("xft-tiny",))
    monkeypatch.setitem(ENVIRONMENTS, "tiny", found)
    return found


def installed_by_hand(name):
    """What a setup leaves behind, without its cost."""
    folder = folder_of(name)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    mark = {"requirements": ENVIRONMENTS[name].digest(), "python": THIS}
    (folder / environment.MARK).write_text(json.dumps(mark))
    return folder


def test_an_environment_is_set_up_apart_and_only_once(tiny, monkeypatch):
    with pytest.raises(DataError, match=r"not installed; run `xft doctor --setup tiny`"):
        python_of("tiny")
    line = setup("tiny")
    assert str(folder_of("tiny")) in line
    assert "xft-tiny 1.0" in line
    assert f"python {THIS}." in line
    said = subprocess.run(
        [python_of("tiny"), "-c", "import sys, xft_tiny; print(xft_tiny.VERSION, sys.prefix)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.split() == ["1.0", str(folder_of("tiny"))]
    assert versions_of("tiny")["xft-tiny"] == "1.0"
    monkeypatch.setattr(environment, "_install", None)
    assert setup("tiny") == line


def test_changed_requirements_make_an_environment_absent_until_it_is_set_up_again(tiny, tmp_path):
    installed_by_hand("tiny")
    before = environment.contents_of("tiny")
    assert before
    tiny.requirements.write_text(f"xft-tiny @ {wheel(tmp_path, '2.0').as_uri()}\n")
    with pytest.raises(DataError, match=r"versions it needs have changed .*; run `xft doctor --setup tiny`"):
        python_of("tiny")
    assert versions_of("tiny") == {}
    assert environment.contents_of("tiny") == ""
    assert "xft-tiny 2.0" in setup("tiny")
    assert environment.contents_of("tiny") not in ("", before)


def test_an_installation_that_fails_is_named_and_counts_as_absent(tiny):
    tiny.requirements.write_text("xft-no-such-package==9\n")
    with pytest.raises(FetchError, match=r"tiny: pip could not install .*tiny\.txt.*xft-no-such-package==9"):
        setup("tiny")
    with pytest.raises(DataError, match="their installation was not finished"):
        python_of("tiny")


def test_a_python_that_is_missing_or_gone_is_named(tiny, monkeypatch):
    monkeypatch.setitem(ENVIRONMENTS, "tiny", replace(tiny, python="3.99"))
    with pytest.raises(DataError, match=r"tiny: its libraries need Python 3\.99; install python3\.99"):
        setup("tiny")
    monkeypatch.setitem(ENVIRONMENTS, "tiny", tiny)
    folder = installed_by_hand("tiny")
    assert python_of("tiny") == folder / "bin" / "python"
    (folder / "bin" / "python").unlink()
    (folder / "bin" / "python").symlink_to("/nowhere/python")
    with pytest.raises(DataError, match="the Python they were installed for is gone"):
        python_of("tiny")


def test_a_file_that_cannot_be_had_is_named_and_tried_again(tiny, tmp_path, monkeypatch):
    source = tmp_path / "source.csv"
    file = DataFile(path="data/a.csv", url=source.as_uri(), sha256=hashlib.sha256(b"a,b\n").hexdigest())
    monkeypatch.setitem(ENVIRONMENTS, "tiny", replace(tiny, files=(file,)))
    folder = installed_by_hand("tiny")
    target, bare = folder / "data" / "a.csv", environment.contents_of("tiny")
    assert "not had, so programs that read them can't run: data/a.csv (" in setup("tiny")
    source.write_text("something else")
    assert f"expected {file.sha256}" in setup("tiny")
    assert not target.exists()
    source.write_text("a,b\n")
    assert "not had" not in setup("tiny")
    assert target.read_text() == "a,b\n"
    assert environment.contents_of("tiny") != bare
    source.unlink()
    assert "not had" not in setup("tiny")


def test_an_unknown_environment_is_refused_with_those_there_are(tiny):
    for ask in (setup, python_of):
        with pytest.raises(UnknownNameError, match=r"unknown environment 'ds1001'; available: ds1000, tiny"):
            ask("ds1001")


def test_every_shipped_requirement_is_pinned_and_every_named_library_is_among_them():
    for entry in ENVIRONMENTS.values():
        lines = [line for line in entry.requirements.read_text().splitlines() if line and not line.startswith("#")]
        names = [line.split("==")[0] for line in lines]
        assert all(line.count("==") == 1 for line in lines)
        assert len(set(map(str.lower, names))) == len(names)
        assert set(entry.libraries) <= set(names)


@pytest.mark.slow
def test_what_is_installed_is_what_was_asked_for():
    for name, entry in ENVIRONMENTS.items():
        try:
            python_of(name)
        except DataError as error:
            pytest.skip(f"not run: {error}")
        found = {key.lower(): version.split("+")[0] for key, version in versions_of(name).items()}
        for line in entry.requirements.read_text().splitlines():
            if line and not line.startswith("#"):
                wanted, version = line.split("==")
                assert found[wanted.lower()] == version
        assert Path(folder_of(name)).is_dir()
