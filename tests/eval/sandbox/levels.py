"""The levels to test, and how a test opens one."""

from __future__ import annotations

import pytest

from xft.errors import SandboxError
from xft.eval.sandbox import Sandbox

LEVELS = ("namespaces", "landlock", "unsafe")


def open_box(level: str, **options: object) -> Sandbox:
    """Return a sandbox of a level, or skip the test where the level does not work."""
    try:
        return Sandbox(level, allow_unsafe=True, **options)
    except SandboxError as error:
        pytest.skip(f"not run: {error}")
