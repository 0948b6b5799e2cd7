"""What runs when transformers' registry of models is imported."""

from __future__ import annotations

from types import ModuleType


def register_classes(_module: ModuleType) -> None:
    """Tell transformers about the mixture classes."""
    from xft.moe.model import register

    register()
