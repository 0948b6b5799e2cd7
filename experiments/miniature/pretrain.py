"""Pre-train the base: a byte-level BPE tokenizer and a small Llama, on the corpus, on CPU cores.

`python -m experiments.miniature.pretrain OUT` writes a stock checkpoint. Half of each batch is library code, half
generated functions. A batch depends on the seed and its number alone, so a run that was killed goes on from its last
resume point as if nothing had happened. Computes in fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.miniature.corpus import functions, library

END, PAD, USER, ASSISTANT = "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '" + ASSISTANT + "' + message['content'] "
    "+ '" + END + "' }}{% else %}{{ '" + USER + "' + message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)
VOCABULARY = 2048
SAMPLE = 20_000
"""Generated documents that the tokenizer is made from, beside the library."""
HELD_OUT = 40
"""Each so-manieth file of the library is held out."""
ROWS, LENGTH = 32, 192
EVALUATED = 2
"""Batches of held-out text."""
WARM_UP = 100
DECAY = 0.5
"""Last share of the steps, in which the learning rate falls to 0."""
RESUME = "resume.pt"


def make_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """Make a byte-level BPE tokenizer with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END, PAD, USER, ASSISTANT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, additional_special_tokens=[USER, ASSISTANT],
        chat_template=TEMPLATE, clean_up_tokenization_spaces=False,
    )  # fmt: skip


class Batches:
    """Rows of tokens, chosen by a batch's number."""

    def __init__(self, tokenizer: Any, texts: list[str], seed: int) -> None:
        self.tokenizer, self.seed = tokenizer, seed
        self.end = tokenizer.eos_token_id
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
        self.stored = torch.tensor([token for ids in encoded for token in (*ids, self.end)], dtype=torch.int32)

    def __getitem__(self, number: int) -> Tensor:
        """Return one batch: the first half of its rows is library code, the second generated."""
        rng = random.Random(f"{self.seed}/{number}")
        rows = []
        for row in range(ROWS):
            if row < ROWS // 2:
                start = rng.randrange(len(self.stored) - LENGTH)
                rows.append(self.stored[start : start + LENGTH].long())
            else:
                rows.append(self._generated(f"{self.seed}/{number}/{row}"))
        return torch.stack(rows)

    def _generated(self, seed: str) -> Tensor:
        tokens: list[int] = []
        for text in functions(seed):
            tokens += [*self.tokenizer.encode(text, add_special_tokens=False), self.end]
            if len(tokens) >= LENGTH:
                break
        return torch.tensor(tokens[:LENGTH])


def rate(step: int, steps: int) -> float:
    """Return the factor of the learning rate: a warm-up, a plain, a line down to 0."""
    return min(1.0, (step + 1) / WARM_UP, (steps - step) / (steps * DECAY))


@torch.inference_mode()
def held_out_loss(model: Any, batches: Batches) -> tuple[float, float]:
    """Return the loss on held-out library code and on generated functions, in nats a token."""
    library_losses, generated_losses = [], []
    for number in range(EVALUATED):
        ids = batches[number]
        half = ROWS // 2
        library_losses.append(float(model(input_ids=ids[:half], labels=ids[:half]).loss))
        generated_losses.append(float(model(input_ids=ids[half:], labels=ids[half:]).loss))
    return sum(library_losses) / EVALUATED, sum(generated_losses) / EVALUATED


def pretrain(out: Path, *, width: int, layers: int, steps: int, lr: float, seed: int) -> None:
    """Write the base into `out`; prints the losses."""
    out.mkdir(parents=True, exist_ok=True)
    texts = library()
    known = [text for number, text in enumerate(texts) if number % HELD_OUT]
    if not (out / "tokenizer.json").exists():
        make_tokenizer(iter([*known, *islice(functions(f"tokenizer/{seed}"), SAMPLE)])).save_pretrained(out)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    batches = Batches(tokenizer, known, seed)
    unseen = Batches(tokenizer, texts[::HELD_OUT], -1)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=layers,
            num_attention_heads=width // 32, num_key_value_heads=width // 32, max_position_embeddings=1024,
            tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    start, parameters = 0, sum(each.numel() for each in model.parameters())
    if (out / RESUME).exists():
        state = torch.load(out / RESUME, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        start = state["step"]
    print(f"{parameters:,} parameters, {len(batches.stored):,} tokens of library code, from step {start}", flush=True)
    began, losses = time.monotonic(), []
    for step in range(start, steps):
        ids = batches[step]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        done = step + 1
        if done % 50 == 0 or done == steps:
            speed = (done - start) * ROWS * LENGTH / (time.monotonic() - began)
            line = {"step": done, "loss": sum(losses) / len(losses), "tokens_per_s": round(speed)}
            if done % 100 == 0 or done == steps:
                line["library"], line["generated"] = held_out_loss(model, unseen)
                _save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                       "schedule": schedule.state_dict(), "step": done}, out / RESUME)  # fmt: skip
            print(json.dumps(line), flush=True)
            losses = []
    model.save_pretrained(out)
    (out / RESUME).unlink(missing_ok=True)


def _save(state: dict[str, Any], path: Path) -> None:
    """Replace the resume point in one step."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    pretrain(given.out, width=given.width, layers=given.layers, steps=given.steps, lr=given.lr, seed=given.seed)


if __name__ == "__main__":
    main()
