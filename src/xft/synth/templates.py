"""Render the prompts: `prompts/NAME.jinja`, in words of this project's own."""

from __future__ import annotations

import functools
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

TITLES = {
    "cpp": "C++", "csharp": "C#", "javascript": "JavaScript", "typescript": "TypeScript", "php": "PHP", "sql": "SQL",
    "shell": "Bash",
}  # fmt: skip
"""Languages whose names are not their own with a capital."""


@functools.cache
def _environment() -> Environment:
    # Plain text for a model, not HTML: nothing is escaped.
    return Environment(
        loader=PackageLoader("xft.synth", "prompts"),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )


def render(name: str, **values: Any) -> str:
    """Return a prompt with its values."""
    return _environment().get_template(f"{name}.jinja").render(**values).strip()


def title(language: str) -> str:
    """Return a language's name for a prompt."""
    return TITLES.get(language, language.capitalize())
