"""The back end `vllm`: a model in this process, run by vLLM, which batches as it sees fit."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

from xft.errors import MissingExtraError, RecipeError
from xft.eval.benchmark import Request
from xft.eval.generate.backend import Answer, Ask, Sampling, Unit, ask_seed, first_stop
from xft.eval.generate.tokens import end_tokens, prompt_tokens
from xft.prompts import resolve_prompt

AT_ONCE = 512
"""Answers handed over together, and made again together after a kill; enough to keep the engine full."""


class VllmBackend:
    """A model that vLLM runs."""

    def __init__(self, model: str, *, style: str, url: str | None, batch: int, precision: str) -> None:
        if url:
            raise RecipeError(f"url: {url} is for --backend openai; the back end vllm runs the model itself")
        try:
            vllm: Any = importlib.import_module("vllm")
        except ImportError:
            raise MissingExtraError("--backend vllm needs vLLM: pip install 'xft[train,vllm]'") from None
        from xft.device import compute_dtype, describe_device

        self._vllm = vllm
        dtype = str(compute_dtype(precision)).removeprefix("torch.")
        self._engine: Any = vllm.LLM(model=model, dtype=dtype, max_num_seqs=batch)
        self._tokenizer: Any = self._engine.get_tokenizer()
        self._room: int = self._engine.llm_engine.model_config.max_model_len
        self.style = style if style == "completion" else resolve_prompt(style, self._tokenizer)
        self._settings = {
            "backend": "vllm",
            "device": describe_device(),
            "dtype": dtype,
            "batch": batch,
            "versions": {"vllm": str(vllm.__version__)},
        }

    def settings(self) -> dict[str, Any]:
        """Return device, type, batch and vLLM's version."""
        return dict(self._settings)

    def units(self, asks: Sequence[Ask]) -> list[Unit]:
        """Return large pieces in the given order."""
        return [asks[start : start + AT_ONCE] for start in range(0, len(asks), AT_ONCE)]

    def complete(self, units: Sequence[Unit], sampling: Sampling) -> Iterator[tuple[Ask, Answer]]:
        """Answer one piece after the other; a prompt without room behind it, to vLLM an error, is answered empty."""
        for unit in units:
            prompts = {ask: self._prompt(ask.request) for ask in unit}
            fitting = [ask for ask in unit if len(prompts[ask]) < self._room]
            for ask in unit:
                if (length := len(prompts[ask])) >= self._room:
                    yield ask, Answer(text="", finish="length", prompt_tokens=length, completion_tokens=0)
            how = [self._sampling(ask, sampling) for ask in fitting]
            outputs = self._engine.generate(
                [{"prompt_token_ids": prompts[ask]} for ask in fitting], how, use_tqdm=False
            )
            yield from ((ask, _answer(output, ask)) for output, ask in zip(outputs, fitting, strict=True))

    def close(self) -> None:
        """Give the model's memory back."""
        from xft.memory import release_memory

        del self._engine
        release_memory()

    def _prompt(self, request: Request) -> list[int]:
        return prompt_tokens(request, self._tokenizer, self.style)

    def _sampling(self, ask: Ask, sampling: Sampling) -> Any:
        return self._vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            stop=list(ask.request.stop),
            stop_token_ids=sorted(end_tokens(self._tokenizer, self.style)),
            seed=ask_seed(sampling.seed, ask) if sampling.temperature > 0 else None,
        )


def _answer(output: Any, ask: Ask) -> Answer:
    made = output.outputs[0]
    cut = first_stop(made.text, ask.request.stop)
    return Answer(
        text=made.text[:cut],
        finish="length" if made.finish_reason == "length" and cut is None else "stop",
        prompt_tokens=len(output.prompt_token_ids),
        completion_tokens=len(made.token_ids),
    )
