"""Prompts to samples with a transformers model: batched, left padded, greedy, resumable batch by batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from xft.eval.benchmark import Benchmark, Problem, Request
from xft.progress import track
from xft.prompts import PROMPTS

TAIL_TOKENS = 12
"""Tokens decoded after each step to look for a stop string; longer than any stop string."""


def prompt_tokens(request: Request, tokenizer: Any, style: str) -> list[int]:
    """Return the prompt's tokens, cut where training cuts them: between the prompt style's text and the answer."""
    before = "" if request.instruction is None else PROMPTS[style].before(tokenizer, request.instruction)
    if request.instruction is None and tokenizer.bos_token and tokenizer.encode("")[:1] == [tokenizer.bos_token_id]:
        before = tokenizer.bos_token
    pieces = [tokenizer.encode(text, add_special_tokens=False) for text in (before, request.prefix) if text]
    return [token for piece in pieces for token in piece]


class _StopAtText(StoppingCriteria):
    """End each row where one of the strings has appeared in what it generated."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...], prompt_length: int) -> None:
        self.tokenizer, self.stop, self.prompt_length = tokenizer, stop, prompt_length

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        start = max(self.prompt_length, input_ids.shape[1] - TAIL_TOKENS)
        tails = self.tokenizer.batch_decode(input_ids[:, start:])
        return torch.tensor([any(stop in tail for stop in self.stop) for tail in tails], device=input_ids.device)


def generate(
    model: Any, tokenizer: Any, benchmark: Benchmark, problems: Sequence[Problem], out: Path,
    *, style: str, max_new_tokens: int, batch: int, label: str,
) -> None:  # fmt: skip
    """Write one greedy sample a problem to `out`/samples.jsonl, in the problems' order.

    A killed run goes on with the first batch that is not whole, so that its texts are those of an uninterrupted one.
    """
    requests = {problem.task_id: benchmark.request(problem, style) for problem in problems}
    prompts = {task: prompt_tokens(request, tokenizer, style) for task, request in requests.items()}
    ordered = sorted(problems, key=lambda problem: -len(prompts[problem.task_id]))
    batches = [ordered[start : start + batch] for start in range(0, len(ordered), batch)]
    path = out / "samples.jsonl"
    samples = _whole_batches(path, batches)
    with track(label, len(problems), done=len(samples)) as advance, path.open("w", encoding="utf-8") as sink:
        for sample in samples.values():
            sink.write(json.dumps(sample) + "\n")
        sink.flush()
        for part in batches:
            if part[0].task_id in samples:
                continue
            stop = requests[part[0].task_id].stop
            texts = _complete(model, tokenizer, [prompts[p.task_id] for p in part], stop, max_new_tokens)
            for problem, (completion, finish) in zip(part, texts, strict=True):
                sample = {"task_id": problem.task_id, "completion": completion, "finish": finish}
                sample["code"] = benchmark.extract(problem, completion, style)
                samples[problem.task_id] = sample
                sink.write(json.dumps(sample) + "\n")
            sink.flush()
            advance(len(part))
    final = path.with_name("samples.jsonl.new")
    final.write_text("".join(json.dumps(samples[p.task_id]) + "\n" for p in problems), encoding="utf-8")
    final.replace(path)


def _whole_batches(path: Path, batches: Sequence[Sequence[Problem]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            sample = json.loads(line)
            found[sample["task_id"]] = sample
        except (ValueError, KeyError):  # a line that a kill cut short
            continue
    whole = [part for part in batches if all(problem.task_id in found for problem in part)]
    return {problem.task_id: found[problem.task_id] for part in whole for problem in part}


@torch.inference_mode()
def _complete(
    model: Any, tokenizer: Any, prompts: list[list[int]], stop: tuple[str, ...], max_new_tokens: int
) -> list[tuple[str, str]]:
    """Return each prompt's completion, cut at its stop string, and why it ended: "stop" or "length"."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(tokens)) + tokens for tokens in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(tokens)) + [1] * len(tokens) for tokens in prompts], device=model.device)
    output = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad,
        temperature=None, top_p=None, top_k=None,
        stopping_criteria=StoppingCriteriaList([_StopAtText(tokenizer, stop, width)]),
    )  # fmt: skip
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    completions: list[tuple[str, str]] = []
    for row in output[:, width:].tolist():
        ended = next((position for position, token in enumerate(row) if token in ends), None)
        text = tokenizer.decode(row[:ended], skip_special_tokens=True)
        cut = min((text.index(s) for s in stop if s in text), default=None)
        finish = "length" if ended is None and cut is None else "stop"
        completions.append((text[:cut], finish))
    return completions
