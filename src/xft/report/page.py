"""What all pages share: templates that escape, and a folder that is written whole or not at all."""

from __future__ import annotations

import functools
import shutil
from importlib import resources
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined

from xft.errors import RunError
from xft.report import table


@functools.cache
def environment() -> Environment:
    """Return the templates of the package, by their paths in it, such as `report/page.html`; read once a process.

    Completions, and whatever else is shown, are untrusted text: autoescape stays on, and only xft.report.plots makes
    Markup.
    """
    loader = FunctionLoader(lambda name: resources.files("xft").joinpath(name).read_text(encoding="utf-8"))
    found = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=loader)
    found.filters.update(duration=table.duration, memory=table.memory, power=table.power, quantity=table.quantity)
    found.filters.update(title_of=table.title)
    return found


def write_page(final: Path, page: str) -> Path:
    """Write `index.html` into a folder of its own, and return its path.

    Raises:
        RunError: it can't be written.
    """
    partial = final.with_name(final.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        # A completion may hold lone surrogates, which no encoding has.
        (partial / "index.html").write_text(page, encoding="utf-8", errors="replace")
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
    except OSError as error:
        raise RunError(f"{final}: can't write the report: {error}") from error
    return final / "index.html"
