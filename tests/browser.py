"""Pages in a real browser: what lies outside, what must be scrolled to, how they look."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

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


def browse(page: Path, profile: Path, *options: str) -> str:
    assert CHROMIUM
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def measure(page: Path, folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Show a page in a frame of each width; return the page with the frames, and what was measured in each."""
    frames = "".join(
        f'<iframe src="{page.as_uri()}" style="border:0;flex:none;width:{width}px;height:800px"></iframe>'
        for width in WIDTHS
    )
    outer = folder / "frames.html"
    outer.write_text(FRAMES.format(frames=frames), encoding="utf-8")
    found = re.search(r'<pre id="sizes">(.+?)</pre>', browse(outer, folder / "profile", "--dump-dom"))
    assert found, "the browser measured nothing"
    return outer, json.loads(found[1].replace("&gt;", ">").replace("&amp;", "&"))
