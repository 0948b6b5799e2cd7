"""Which licence a file is under, by its own header or by the nearest LICENSE file above it.

Phrases that only one licence has. This is not legal advice: a text that is not recognised is `unknown`.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

FILES = re.compile(r"(?:LICEN[CS]E|COPYING|UNLICENSE)(?:[.-][\w.-]+)?", re.IGNORECASE)
SPDX = re.compile(r"SPDX-License-Identifier:\s*([\w.+() -]*[\w.+)])")
HEAD = 2000
"""Characters in which a file's own header stands."""
MAX_BYTES = 200_000

PHRASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Apache-2.0", ("apache license", "version 2.0")),
    ("AGPL-3.0", ("gnu affero general public license", "version 3")),
    ("LGPL-3.0", ("gnu lesser general public license", "version 3")),
    ("LGPL-2.1", ("gnu lesser general public license", "version 2.1")),
    ("GPL-3.0", ("gnu general public license", "version 3")),
    ("GPL-2.0", ("gnu general public license", "version 2")),
    ("MPL-2.0", ("mozilla public license", "2.0")),
    ("PSF-2.0", ("python software foundation license", "version 2")),
    ("BSL-1.0", ("boost software license", "version 1.0")),
    ("CC0-1.0", ("cc0 1.0 universal",)),
    ("CC-BY-SA-4.0", ("creative commons attribution-sharealike 4.0",)),
    ("CC-BY-4.0", ("creative commons attribution 4.0",)),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("MIT", ("permission is hereby granted, free of charge, to any person", "the above copyright notice")),
    ("ISC", ("permission to use, copy, modify, and/or distribute this software for any purpose",)),
    ("ISC", ("permission to use, copy, modify, and distribute this software for any purpose",)),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "neither the name")),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms",)),
)  # fmt: skip
"""A licence and phrases that its text has, all of them; of two that begin alike the more particular one first."""


def license_of_text(text: str) -> str | None:
    """Name a licence by its own text: of those that are mentioned, the one mentioned first."""
    plain = " ".join(text.lower().split())
    found = [
        (plain.index(phrases[0]), number, name)
        for number, (name, phrases) in enumerate(PHRASES)
        if all(phrase in plain for phrase in phrases)
    ]
    return min(found)[2] if found else None


def license_of_header(text: str) -> str | None:
    """Return a source file's SPDX line, if it has one."""
    found = SPDX.search(text[:HEAD])
    return found[1].strip() if found else None


class LicenseFiles:
    """The licences that LICENSE files give the folders below them; each folder is looked at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[Path, str | None] = {}

    def of(self, folder: Path) -> str | None:
        """Return the licence of a folder within the root: its own, else that of the folder above."""
        if folder not in self._known:
            found = _in_folder(folder)
            self._known[folder] = found or (self.of(folder.parent) if folder != self.root else None)
        return self._known[folder]


def _in_folder(folder: Path) -> str | None:
    with contextlib.suppress(OSError):
        for path in sorted(folder.iterdir()):
            if FILES.fullmatch(path.name) and path.is_file():
                text = path.read_bytes()[:MAX_BYTES].decode(errors="replace")
                if name := license_of_text(text):
                    return name
    return None
