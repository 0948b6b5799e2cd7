"""A teacher that plays a script, with a cache of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from scripted_teacher import Script, played

from xft.eval.generate import server


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Script], str]]:
    monkeypatch.setattr(server, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("XFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("XFT_DATA", raising=False)
    monkeypatch.delenv(server.KEY, raising=False)
    with ExitStack() as stack:
        yield lambda script: stack.enter_context(played(script))
