"""LAYOUTS: how experts are made of an FFN, computed, and merged to one FFN again.

To add one, write a `Layout` in a module here, import it below and name it in the recipe's `upcycle.layout`;
`tests/moe/layouts/test_layouts.py` then checks its laws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xft.families import Family
from xft.moe.layouts import copy, delta, split  # noqa: F401  (register)
from xft.moe.layouts.layout import LAYOUTS, Layout, Piece
from xft.recipe import UpcycleConfig, parse_section

__all__ = ["LAYOUTS", "Layout", "Piece", "layout_of", "settings_of"]


def settings_of(options: Mapping[str, Any], where: str) -> UpcycleConfig:
    """Return how a mixture was made, from the mapping `xft` of its config.json; keys that it lacks have their defaults.

    Raises:
        RecipeError: a value that no mixture can have; the message starts with `where`.
    """
    known = {key: options[key] for key in UpcycleConfig.model_fields if key in options}
    return parse_section(UpcycleConfig, known, f"{where}: xft")


def layout_of(config: UpcycleConfig, family: Family) -> Layout:
    """Return the layout of a mixture of a family.

    Raises:
        RecipeError: the numbers of experts fit neither router nor layout.
        UnknownNameError: no such router.
    """
    return LAYOUTS[config.layout](config, family)
