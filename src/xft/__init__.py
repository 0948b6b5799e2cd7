"""xft: dense code LLM in, better dense code LLM out (XFT, ACL 2024, arXiv 2404.15247)."""

import wrapt

from xft.families import FAMILIES

__version__ = "0.1.0"

# Mixture checkpoints load with `AutoModelForCausalLM` after `import xft`, in whatever order the two are imported,
# and `import xft` itself stays free of torch: the classes are registered when transformers' registry is there.
for _module in (
    "transformers.models.auto.modeling_auto",
    "transformers.modeling_layers",
    *(family.modeling for family in FAMILIES.values()),
):
    wrapt.register_post_import_hook("xft.moe.hook:register_classes", _module)
