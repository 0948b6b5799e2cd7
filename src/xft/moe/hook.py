"""What runs when transformers' registry of models is imported."""

from __future__ import annotations

from types import ModuleType


def register_classes(_module: ModuleType) -> None:
    """Tell transformers about the mixture classes; importing their module does, also where that import is under way."""
    import xft.moe.model  # noqa: F401
