from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from synthetic_run import write_run

from xft.eval import metrics


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("synthetic") / "run")


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "run")


@pytest.fixture(scope="session", autouse=True)
def few_resamples() -> Iterator[None]:
    """Draw intervals from a tenth of the resamples: what they say of made-up runs is far from any limit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "RESAMPLES", metrics.RESAMPLES // 10)
        yield
