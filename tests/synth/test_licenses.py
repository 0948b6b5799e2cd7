from __future__ import annotations

from pathlib import Path

import pytest

from xft.synth.licenses import LicenseFiles, license_of_header, license_of_text

MIT = (
    "MIT License\n\nPermission is hereby granted, free of charge, to any person\nobtaining a copy of this software ... "
    "The above copyright notice and this permission notice shall be included"
)


@pytest.mark.parametrize(("text", "name"), [
    (MIT, "MIT"),
    ("Apache License\nVersion 2.0, January 2004", "Apache-2.0"),
    ("GNU GENERAL PUBLIC LICENSE Version 3 ... use with the GNU Affero General Public License", "GPL-3.0"),
    ("GNU AFFERO GENERAL PUBLIC LICENSE\nVersion 3 ... the GNU General Public License", "AGPL-3.0"),
    ("GNU LESSER GENERAL PUBLIC LICENSE\nVersion 2.1 ... GNU General Public License version 2", "LGPL-2.1"),
    ("Redistribution and use in source and binary forms ... Neither the name of", "BSD-3-Clause"),
    ("Redistribution and use in source and binary forms, with or without", "BSD-2-Clause"),
    ("PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2 ... Redistribution and use in source and binary forms", "PSF-2.0"),
    ("All rights reserved.", None),
])  # fmt: skip
def test_common_licences_are_known_by_their_text(text: str, name: str | None) -> None:
    assert license_of_text(text) == name


def test_a_header_names_its_licence() -> None:
    assert license_of_header("# SPDX-License-Identifier: MIT OR Apache-2.0\nimport os\n") == "MIT OR Apache-2.0"
    assert license_of_header("/* SPDX-License-Identifier: GPL-2.0+ */\n") == "GPL-2.0+"
    assert license_of_header("import os\n") is None


def test_the_nearest_licence_file_counts_and_none_above_the_root(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text(MIT)
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "vendored" / "x").mkdir(parents=True)
    (root / "vendored" / "COPYING.txt").write_text("Mozilla Public License Version 2.0")
    files = LicenseFiles(root)
    assert files.of(root / "a" / "b") is None
    assert files.of(root / "vendored" / "x") == "MPL-2.0"
    (root / "LICENCE.md").write_text("CC0 1.0 Universal")
    assert LicenseFiles(root).of(root / "a" / "b") == "CC0-1.0"
