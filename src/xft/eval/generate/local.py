"""The back end `transformers`: a model in this process, answers of like length together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from xft.checkpoint import Checkpoint
from xft.device import compute_dtype, describe_device, device
from xft.errors import RecipeError
from xft.eval.benchmark import Request
from xft.eval.generate.backend import Answer, Ask, Sampling, Unit, ask_seed
from xft.eval.generate.decode import Row, complete_rows
from xft.eval.generate.tokens import end_tokens, prompt_tokens
from xft.memory import keep_heap_warm, release_memory
from xft.prompts import resolve_prompt, tokenizer_of
from xft.tune.tune import quiet

BATCHES = 4
"""Batches' worth of answers that a kill costs at most; only at the end of so many the batch runs empty."""


class LocalBackend:
    """A model that transformers runs."""

    def __init__(self, model: str, *, style: str, url: str | None, batch: int, precision: str) -> None:
        if url:
            raise RecipeError(f"url: {url} is for --backend openai; the back end transformers runs the model itself")
        quiet()
        keep_heap_warm()
        Checkpoint(Path(model))  # a clear error for a folder that holds no whole model
        self.tokenizer: Any = tokenizer_of(model)
        self.style = style if style == "completion" else resolve_prompt(style, self.tokenizer)
        self.batch = batch
        dtype = compute_dtype(precision)
        net: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        self.model: Any = net.to(device()).eval()
        self._settings = {
            "backend": "transformers",
            "device": describe_device(),
            "dtype": str(dtype).removeprefix("torch."),
            "batch": batch,
            "padding": "left",
            "attention": self.model.config._attn_implementation,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends]) - {None}
        self._ends = ends | end_tokens(self.tokenizer, self.style)
        self._prompts: dict[Request, tuple[int, ...]] = {}

    def settings(self) -> dict[str, Any]:
        """Return device, type, batch, padding, attention and library versions."""
        return dict(self._settings)

    def units(self, asks: Sequence[Ask]) -> list[Unit]:
        """Return a few batches each, the longest prompts first, so that a lack of memory shows at once."""
        ordered = sorted(asks, key=lambda ask: -len(self._prompt(ask.request)))
        size = self.batch * BATCHES
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]

    def complete(self, units: Sequence[Unit], sampling: Sampling) -> Iterator[tuple[Ask, Answer]]:
        """Answer one unit after the other; in each, `batch` answers are made at the same time."""
        for unit in units:
            rows = [
                Row(prompt=self._prompt(ask.request), stop=ask.request.stop, seed=ask_seed(sampling.seed, ask))
                for ask in unit
            ]
            made = complete_rows(self.model, self.tokenizer, rows, sampling, self._ends, width=self.batch)
            yield from ((unit[number], answer) for number, answer in made)
            for ask in unit:  # a synthesis has no end of prompts
                self._prompts.pop(ask.request, None)

    def close(self) -> None:
        """Give the model's memory back."""
        del self.model
        release_memory()

    def _prompt(self, request: Request) -> tuple[int, ...]:
        if request not in self._prompts:
            self._prompts[request] = tuple(prompt_tokens(request, self.tokenizer, self.style))
        return self._prompts[request]
