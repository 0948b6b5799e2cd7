"""What runs when transformers' registry of models, or a family's module, has been imported."""

from __future__ import annotations

import sys
from types import ModuleType

AUTO = "transformers.models.auto.modeling_auto"


def register_classes(_module: ModuleType) -> None:
    """Tell transformers about the mixture classes of all families whose stock class can be had by now.

    A family whose own module is just being imported follows when that is done.
    """
    if not hasattr(sys.modules.get(AUTO), "AutoModelForCausalLM"):
        return
    from xft.moe import model

    if hasattr(model, "register"):  # else its own import is under way, which ends by registering
        model.register()
