"""Measure the mixture layer, forward and backward, against as many dense FFN passes and against two peers.

    python benchmarks/moe_layer.py                          # all, some minutes on 2 idle cores
    python benchmarks/moe_layer.py --shape smollm2 --mode bf16 --clock cpu --threads 1     # on a busy machine

Every round runs every candidate once; the figures are ratios of the fastest rounds. `floor` is the GEMM floor: the
layer's FLOPs at the rate of one plain matrix product of this shape. Mixtral's block has no shared expert, so it is
compared with 5 dense passes, all others with 6.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig  # noqa: F401  (must come before its models)
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from xft.families import FAMILIES
from xft.memory import keep_heap_warm
from xft.moe.layer import Experts, MoELayer, Router

EXPERTS, ACTIVE = 8, 6
SHAPES = {"smollm2": (576, 1536), "1.3b": (2048, 5504)}
MODES = {
    "bf16": (torch.bfloat16, torch.bfloat16),
    "autocast": (torch.float32, torch.bfloat16),
    "fp32": (torch.float32, torch.float32),
}
"""Dtype of the weights and of the hidden states."""


class LoopedLayer(nn.Module):
    """The authors' way: a module an expert, a Python loop that gathers each one's tokens and adds its outputs."""

    def __init__(self, ours: MoELayer, make_ffn: Callable[[], nn.Module]) -> None:
        super().__init__()
        assert ours.shared_expert is not None
        self.router, self.shared_expert = ours.router, ours.shared_expert
        with torch.device("meta"):
            self.experts = nn.ModuleList(make_ffn() for _ in range(EXPERTS - 1))
        for number, expert in enumerate(self.experts):
            for name in ("gate_proj", "up_proj", "down_proj"):
                getattr(expert, name).weight = nn.Parameter(getattr(ours.experts, name).detach()[number])

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Mix the experts' outputs."""
        x_TD = x_BSD.flatten(0, 1)
        routing = self.router(x_TD).routing
        y_TD: Tensor = self.shared_expert(x_TD) * routing.shared_T[:, None].to(x_TD.dtype)
        chosen_RKT = F.one_hot(routing.ids_TK, EXPERTS - 1).permute(2, 1, 0)
        for number, expert in enumerate(self.experts):
            slot_M, token_M = torch.where(chosen_RKT[number])
            out_MD = expert(x_TD[token_M]) * routing.routed_TK[token_M, slot_M, None].to(x_TD.dtype)
            y_TD = y_TD.index_add(0, token_M, out_MD.to(y_TD.dtype))
        return y_TD.view_as(x_BSD)


def fresh(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Fill a module with small random weights of a dtype."""
    with torch.no_grad():
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.02)
    return module.to(dtype)


def candidates(hidden: int, ffn: int, dtype: torch.dtype) -> dict[str, tuple[nn.Module, int]]:
    """Return the modules to measure and how often each runs in a round."""

    def make_ffn() -> LlamaMLP:
        return LlamaMLP(LlamaConfig(hidden_size=hidden, intermediate_size=ffn))

    shared = make_ffn()
    router = Router(hidden, EXPERTS - 1, ACTIVE - 1, rule="shared-normalized", gate="mlp", noise=True)
    ours = MoELayer(shared, router, Experts(shared, FAMILIES["llama"], EXPERTS - 1))
    fresh(ours, dtype)
    mixtral = MixtralConfig(
        hidden_size=hidden, intermediate_size=ffn, num_local_experts=EXPERTS - 1, num_experts_per_tok=ACTIVE - 1
    )
    mixtral._experts_implementation = "grouped_mm"
    return {
        "dense": (fresh(make_ffn(), dtype), ACTIVE),
        "ours": (ours, 1),
        "loop": (LoopedLayer(ours, make_ffn), 1),
        "Mixtral": (fresh(MixtralSparseMoeBlock(mixtral), dtype), 1),
    }


def measure(shape: str, mode: str, tokens: int, rounds: int, clock: Callable[[], float]) -> str:
    """Return the table's row of one shape and mode."""
    torch.manual_seed(0)
    (hidden, ffn), (dtype, input_dtype) = SHAPES[shape], MODES[mode]
    x_BSD = torch.randn(1, tokens, hidden, dtype=input_dtype, requires_grad=True)
    dy_BSD = torch.randn_like(x_BSD)
    modules = candidates(hidden, ffn, dtype)
    matrix = torch.randn(ffn, hidden, dtype=input_dtype)
    seconds: dict[str, list[float]] = {name: [] for name in (*modules, "product")}
    for _ in range(rounds + 1):  # the first round warms up
        for name, (module, times) in modules.items():
            start = clock()
            for _ in range(times):
                with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
                    y_BSD = module(x_BSD)
                y_BSD.backward(dy_BSD.to(y_BSD.dtype))
            seconds[name].append(clock() - start)
            module.zero_grad()
            x_BSD.grad = None
        start = clock()
        torch.mm(x_BSD.detach()[0], matrix.t())
        seconds["product"].append(clock() - start)
    best = {name: min(values[1:]) for name, values in seconds.items()}
    floor = best["product"] * 3 * 3 * ACTIVE  # gate, up, down; forward, and the gradients of input and weight
    gflop = 2 * tokens * hidden * ffn * 3 * 3 * ACTIVE / 1e9
    parameters = 3 * hidden * ffn * EXPERTS
    moved = parameters * (2 * dtype.itemsize + dtype.itemsize) / 1e6  # weights read twice, gradient written once
    dense = best["dense"]
    ours, loop, mixtral = best["ours"] / dense, best["loop"] / dense, best["Mixtral"] / dense * ACTIVE / (ACTIVE - 1)
    return (
        f"{shape:8} {mode:9} {gflop:7.0f} {moved:7.0f} {1000 * dense:9.1f} {floor / dense:6.2f} {ours:6.2f} {loop:6.2f}"
        f" {mixtral:8.2f}"
    )


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, nargs="*", default=list(SHAPES))
    parser.add_argument("--mode", choices=MODES, nargs="*", default=list(MODES))
    parser.add_argument("--tokens", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: what others' work can't delay")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_heap_warm()  # as while a mixture is tuned
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[options.clock]
    print(
        f"{EXPERTS} experts, {ACTIVE} active, {options.tokens} tokens, forward + backward; torch {torch.__version__}, "
        f"threads {options.threads}, {options.clock} time, best of {options.rounds}; ratios to {ACTIVE} dense passes"
    )
    print("shape    mode        GFLOP      MB  dense ms  floor   ours   loop  Mixtral")
    for shape in options.shape:
        for mode in options.mode:
            print(measure(shape, mode, options.tokens, options.rounds, clock), flush=True)


if __name__ == "__main__":
    main()
