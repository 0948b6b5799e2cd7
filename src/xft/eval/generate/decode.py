"""Prompts to texts with a transformers model, many at a time.

A loop of its own, beside `model.generate`, for three reasons: a row that has ended leaves the batch and the next prompt
takes its place, so that a few long answers don't cost whole batches; rows have stop strings of their own; and each row
draws its own random numbers, so that what a row says does not depend on which others it is in a batch with, rounding
apart.

Shapes: B rows going, U different prompts, T tokens, V vocabulary, K most probable tokens; layers of a cache BHTD.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from xft.eval.generate.backend import Answer, Sampling, first_stop

CONTEXT = 4
"""Prompt tokens decoded before an answer; some tokenizers drop the space at a text's start, even an indentation's."""
PLACES = 4
"""New rows begin when one in so many places is free: each time the cache of all rows is copied."""
ROOM = 64
"""Tokens for which a cache has room before it is copied into a larger one."""
READ = 2048
"""Tokens of prompts read in a pass, padding included; one prompt may be longer. Sliding windows are read in one."""
LOPSIDED = 2
"""A row goes beside others whose length is at most so many times what its own may become: to them it is padded."""
SHARED = 32
"""Tokens that prompts must have in common at their start for these to be read once."""
NUCLEUS = 256
"""Tokens among which a top-p set is looked for before the whole vocabulary is sorted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One answer to make."""

    prompt: tuple[int, ...]
    stop: tuple[str, ...]
    seed: int


class _RoomyLayer(DynamicLayer):
    """A layer's cache with room at its end, so that a token costs a write and not a copy of all that was read."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stores: list[Tensor] = []
        self._given: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add the newest tokens' keys and values; return those of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        end = length + key_states.shape[-2]
        new_BHTD = (key_states, value_states)
        if self.keys is not self._given or end > self._stores[0].shape[-2]:  # rows were exchanged, or it is full
            self._stores = [part.new_empty(*part.shape[:-2], end + ROOM, part.shape[-1]) for part in new_BHTD]
            if length:
                for store, old in zip(self._stores, (self.keys, self.values), strict=True):
                    assert old is not None
                    store[..., :length, :] = old
        for store, part in zip(self._stores, new_BHTD, strict=True):
            store[..., length:end, :] = part
        return self._show(end)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in place where each either stays or takes the place of one that has left."""
        kept = indices.tolist()
        moved = [(place, row) for place, row in enumerate(kept) if place != row]
        if self.keys is not self._given or any(row < len(kept) for _, row in moved):
            super().batch_select_indices(indices)
            return
        for store in self._stores:
            for place, row in moved:
                store[place] = store[row]
        self._stores = [store[: len(kept)] for store in self._stores]
        self._show(self.get_seq_length())

    def hold(self, keys: Tensor | None, values: Tensor | None) -> None:
        """Have these keys and values instead; room for more is made when more come."""
        self.keys, self.values, self._stores, self._given = keys, values, [], None

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        """Let keys and values be the first tokens of what is stored."""
        self.keys, self.values = (store[..., :length, :] for store in self._stores)
        self._given = self.keys
        return self.keys, self.values


@dataclass(kw_only=True, slots=True)
class _Batch:
    """The rows that are going: what they have read, and the logits of what comes next."""

    going: list[_Writer]
    cache: DynamicCache
    mask_BT: Tensor
    logits_BV: Tensor


@torch.inference_mode()
def complete_rows(
    model: Any, tokenizer: Any, rows: Sequence[Row], sampling: Sampling, ends: set[int], *, width: int
) -> Iterator[tuple[int, Answer]]:
    """Give each row's number and answer as soon as it has ended; `ends` are the tokens that end an answer.

    At most `width` rows go at a time; equal prompts that begin together are read once.
    """
    room = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    waiting: deque[_Writer] = deque()
    for number, row in enumerate(rows):
        writer = _Writer(tokenizer, row, number, ends, min(sampling.max_new_tokens, room - len(row.prompt)))
        if writer.left > 0:
            waiting.append(writer)
        else:
            yield number, writer.answer()
    batch: _Batch | None = None
    while waiting or batch:
        free = width - (len(batch.going) if batch else 0)
        if waiting and (batch is None or (free >= max(1, width // PLACES) and _can_join(batch.cache))):
            length = int(batch.mask_BT.sum(-1).max()) if batch else 0
            if beginners := _beginners(waiting, free, length):
                fresh = _read(model, beginners)
                batch = _joined([batch, *fresh] if batch else fresh)
        assert batch
        tokens_B = _choose(batch.logits_BV, batch.going, sampling)
        more = [writer.add(token) for writer, token in zip(batch.going, tokens_B.tolist(), strict=True)]
        ended = [writer for writer, on in zip(batch.going, more, strict=True) if not on]
        batch = _stepped(model, batch, tokens_B, more) if any(more) else None
        yield from ((writer.number, writer.answer()) for writer in ended)


def _beginners(waiting: deque[_Writer], free: int, length: int) -> list[_Writer]:
    """Take the next of those that wait, longest first, as long as padding to the longest's length suits them.

    `length` is that of the longest row that is going.
    """
    taken: list[_Writer] = []
    while waiting and len(taken) < free:
        own = len(waiting[0].row.prompt)
        length = max(length, own)
        if length > LOPSIDED * (own + waiting[0].left):
            break
        taken.append(waiting.popleft())
    return taken


def _read(model: Any, writers: list[_Writer]) -> list[_Batch]:
    """Begin rows: read their prompts, no more than READ tokens in a pass."""
    prompts = dict.fromkeys(writer.row.prompt for writer in writers)
    cache = DynamicCache(config=model.config)
    cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    shared = _shared(list(prompts)) if _can_join(cache) else 0
    if shared:  # read once what all prompts begin with
        ids_1T = torch.tensor([writers[0].row.prompt[:shared]], device=model.device)
        mask_1T = torch.ones_like(ids_1T)
        _forward(model, ids_1T, mask_1T, mask_1T.cumsum(-1) - 1, cache)
    parts = list(_parts(writers, shared)) if _can_join(cache) else [writers]
    return [
        _read_part(model, part, shared, cache if number == len(parts) else copy.deepcopy(cache))
        for number, part in enumerate(parts, 1)
    ]


def _parts(writers: Sequence[_Writer], shared: int) -> Iterator[list[_Writer]]:
    """Divide rows whose prompts go from long to short, so that little is padding and few tokens are in hand at once."""
    part: list[_Writer] = []
    prompts: set[tuple[int, ...]] = set()
    for writer in writers:
        more = prompts | {writer.row.prompt}
        if part and more != prompts and len(more) * (max(map(len, more)) - shared) > READ:
            yield part
            part, more = [], {writer.row.prompt}
        prompts = more
        part.append(writer)
    yield part


def _read_part(model: Any, writers: list[_Writer], shared: int, cache: DynamicCache) -> _Batch:
    """Read prompts after what a cache of one row has read already, which becomes theirs."""
    prompts = list(dict.fromkeys(writer.row.prompt for writer in writers))
    ids_UT, mask_UT = _padded([prompt[shared:] for prompt in prompts], model.device)
    if shared:
        cache.batch_select_indices(ids_UT.new_zeros(len(prompts)))
        mask_UT = torch.cat([mask_UT.new_ones(len(prompts), shared), mask_UT], dim=1)
    positions_UT = (mask_UT.cumsum(-1) - 1).clamp(min=0)[:, shared:]
    logits_UV = _forward(model, ids_UT, mask_UT, positions_UT, cache)
    which_B = torch.tensor([prompts.index(writer.row.prompt) for writer in writers], device=model.device)
    if len(prompts) < len(writers):
        cache.batch_select_indices(which_B)
    return _Batch(going=writers, cache=cache, mask_BT=mask_UT[which_B], logits_BV=logits_UV[which_B])


def _shared(prompts: Sequence[tuple[int, ...]]) -> int:
    """Return how many tokens all of several prompts begin with, where that is worth a pass of its own."""
    first, last = min(prompts), max(prompts)  # all others lie between these two
    ends = min(map(len, prompts)) - 1  # each has a token left of which the logits are wanted
    same = next((at for at in range(ends) if first[at] != last[at]), ends)
    return same if len(prompts) > 1 and same >= SHARED else 0


def _stepped(model: Any, batch: _Batch, tokens_B: Tensor, more: Sequence[bool]) -> _Batch:
    """Let the rows that have more to say read their token; the others leave."""
    going, mask_BT = batch.going, batch.mask_BT
    if not all(more):
        kept = _close_gaps(more)
        kept_B = torch.tensor(kept, device=tokens_B.device)
        batch.cache.batch_select_indices(kept_B)
        tokens_B, mask_BT = tokens_B[kept_B], mask_BT[kept_B]
        going = [going[row] for row in kept]
    mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(going), 1)], dim=1)
    positions_B1 = mask_BT.sum(-1, keepdim=True) - 1
    logits_BV = _forward(model, tokens_B[:, None], mask_BT, positions_B1, batch.cache)
    return _Batch(going=going, cache=batch.cache, mask_BT=mask_BT, logits_BV=logits_BV)


def _close_gaps(more: Sequence[bool]) -> list[int]:
    """Return which row stands at each place when the last rows take the places of those that have left."""
    count = sum(more)
    last = iter([row for row, on in enumerate(more) if on and row >= count])
    return [place if more[place] else next(last) for place in range(count)]


def _can_join(cache: DynamicCache) -> bool:
    """Tell whether all layers keep all that was read; sliding windows can't be lined up anew."""
    return all(type(layer) is _RoomyLayer for layer in cache.layers)


def _joined(batches: Sequence[_Batch]) -> _Batch:
    """Put the rows of batches below each other, all lined up on the right."""
    if len(batches) == 1:
        return batches[0]
    # The padding that all rows of a batch have, of rows that have left, goes.
    spare = [int((batch.mask_BT.cumsum(-1) == 0).sum(-1).min()) for batch in batches]
    length = max(batch.mask_BT.shape[1] - none for batch, none in zip(batches, spare, strict=True))

    def lined(parts: Sequence[Tensor], dim: int) -> Tensor:
        cut = [part.narrow(dim, none, part.shape[dim] - none) for part, none in zip(parts, spare, strict=True)]
        behind = [0, 0] * (parts[0].dim() - 1 - dim)
        return torch.cat([pad(part, (*behind, length - part.shape[dim], 0)) for part in cut])

    cache = batches[0].cache
    for layer, *others in zip(*(batch.cache.layers for batch in batches), strict=True):
        layer.hold(*(lined([getattr(each, name) for each in (layer, *others)], dim=2) for name in ("keys", "values")))
        for each in others:
            each.hold(None, None)  # so that no more than a layer is there twice
    return _Batch(
        going=[writer for batch in batches for writer in batch.going],
        cache=cache,
        mask_BT=lined([batch.mask_BT for batch in batches], dim=1),
        logits_BV=torch.cat([batch.logits_BV for batch in batches]),
    )


def _padded(prompts: Sequence[tuple[int, ...]], device: Any) -> tuple[Tensor, Tensor]:
    """Return tokens and mask, padded on the left; what stands in the padding is never looked at."""
    width = max(map(len, prompts))
    ids_UT = [[0] * (width - len(tokens)) + list(tokens) for tokens in prompts]
    mask_UT = [[0] * (width - len(tokens)) + [1] * len(tokens) for tokens in prompts]
    return torch.tensor(ids_UT, device=device), torch.tensor(mask_UT, device=device)


def _forward(model: Any, ids_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, cache: DynamicCache) -> Tensor:
    """Return the logits that follow each row."""
    output = model(
        input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT, past_key_values=cache, use_cache=True,
        logits_to_keep=1,
    )  # fmt: skip
    logits_BV: Tensor = output.logits[:, -1]
    return logits_BV


def _choose(logits_BV: Tensor, going: Sequence[_Writer], sampling: Sampling) -> Tensor:
    """Return each row's next token."""
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    draws_B = torch.tensor([writer.random.random() for writer in going], device=logits_BV.device)
    return sample_tokens(logits_BV, draws_B, temperature=sampling.temperature, top_p=sampling.top_p)


def sample_tokens(logits_BV: Tensor, draws_B: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """Return the token at which each row's cumulative probability passes its draw from [0, 1).

    With `top_p` below 1 only the most probable tokens count that reach it together. Each row is chosen for itself.
    """
    probs_BV = (logits_BV.float() / temperature).softmax(-1)
    if top_p >= 1:
        return _at_draw(probs_BV, draws_B)
    top_BK, ids_BK = probs_BV.topk(min(NUCLEUS, probs_BV.shape[-1]))
    tokens_B = _in_nucleus(top_BK, ids_BK, draws_B, top_p)
    for row in (top_BK.sum(-1) < top_p).nonzero().flatten().tolist():  # its set is larger
        top_1V, ids_1V = probs_BV[row : row + 1].sort(descending=True, stable=True)
        tokens_B[row] = _in_nucleus(top_1V, ids_1V, draws_B[row : row + 1], top_p)[0]
    return tokens_B


def _in_nucleus(top_BK: Tensor, ids_BK: Tensor, draws_B: Tensor, top_p: float) -> Tensor:
    """Choose among descending probabilities, up to the one that reaches `top_p`."""
    kept_BK = top_BK * (top_BK.cumsum(-1) - top_BK < top_p)
    return ids_BK.gather(-1, _at_draw(kept_BK, draws_B)[:, None])[:, 0]


def _at_draw(weights_BK: Tensor, draws_B: Tensor) -> Tensor:
    """Return where the running sum passes the draw's share of the total; never a place of weight 0."""
    sums_BK = weights_BK.double().cumsum(-1)
    total_B1 = sums_BK[:, -1:].contiguous()
    places_B1 = torch.searchsorted(sums_BK, draws_B.double()[:, None] * total_B1, right=True)
    places_B1 = torch.minimum(places_B1, torch.searchsorted(sums_BK, total_B1))  # no further than the sum grows
    return places_B1[:, 0].clamp(max=weights_BK.shape[-1] - 1)  # of NaN there is no place


class _Writer:
    """One row: what it has said, and whether it has ended."""

    def __init__(self, tokenizer: Any, row: Row, number: int, ends: set[int], left: int) -> None:
        self.tokenizer, self.row, self.number, self.left = tokenizer, row, number, left
        self.random = random.Random(row.seed)
        self.tokens: list[int] = []
        self.ended = False
        # A stop string may be a special token's spelling, which never shows in a text without special tokens.
        self.ends = ends | {token for token in map(_special(tokenizer).get, row.stop) if token is not None}
        # Each token adds at least a byte, so this many show a stop string that the last one completes.
        self.tail = max((len(stop.encode()) for stop in row.stop), default=0) + CONTEXT

    def add(self, token: int) -> bool:
        """Take the next token; tell whether the row goes on."""
        if token in self.ends:
            self.ended = True
            return False
        self.tokens.append(token)
        self.left -= 1
        if self.row.stop and first_stop(self._decode(self.tokens[-self.tail :]), self.row.stop) is not None:
            self.ended = True
        return not self.ended and self.left > 0

    def answer(self) -> Answer:
        """Return the text, cut at its first stop string."""
        context = list(self.row.prompt[-CONTEXT:])
        before, whole = self._decode(context), self._decode(context + self.tokens)
        text = whole[len(before) :] if whole.startswith(before) else self._decode(self.tokens)
        cut = first_stop(text, self.row.stop)
        return Answer(
            text=text[:cut],
            finish="stop" if self.ended or cut is not None else "length",
            prompt_tokens=len(self.row.prompt),
            completion_tokens=len(self.tokens),
        )

    def _decode(self, tokens: list[int]) -> str:
        text = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)


def _special(tokenizer: Any) -> dict[str, int]:
    """Map the spellings of special tokens to their numbers."""
    return {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
