"""What runs when one of the modules of transformers that mixture classes are built on has been imported."""

from __future__ import annotations

import sys
from types import ModuleType

AUTO = "transformers.models.auto.modeling_auto"
LAYERS = "transformers.modeling_layers"
"""Imports AUTO, and is imported by every family's module."""


def register_classes(done: ModuleType) -> None:
    """Tell transformers about the mixture classes of all families whose stock class can be had by now.

    Those that can't be yet, since a module of theirs is just being imported, follow when that is done.
    """
    layers = sys.modules.get(LAYERS)
    under_way = layers is not None and layers is not done and getattr(layers.__spec__, "_initializing", False)
    if under_way or not hasattr(sys.modules.get(AUTO), "AutoModelForCausalLM"):
        return
    from xft.moe import model

    if hasattr(model, "register"):  # else its own import is under way, which ends by registering
        model.register()
