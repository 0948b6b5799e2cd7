"""Instruction Pre-Training (arXiv 2406.14491): pairs about raw text, in rounds that build on one another.

A synthesizer (a model tuned for it, prompt style `completion`) continues `<CON> text </CON>` with its pairs, preceded
by the texts and pairs of the rounds before. A general teacher is told the same in words. The text goes into each
instruction, since its questions ask about it.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from xft.eval.benchmark import Request
from xft.synth.config import SynthConfig
from xft.synth.methods.method import METHODS, Frame, Method, in_turn
from xft.synth.rules import fault_of, same_key
from xft.synth.task import Document, Draft, Question, Reject, Steps, Task, ask
from xft.synth.templates import render

PAIR = re.compile(r"<QUE>((?:(?!<QUE>|</END>).)+)<ANS>((?:(?!<QUE>|<ANS>).)+?)</END>", re.DOTALL)
Pairs = list[tuple[str, str]]


def plan(documents: Sequence[Document], config: SynthConfig, seed: int) -> Iterator[Task]:
    """Put `rounds` texts together, each document's once; of a long document one passage is shown.

    With a mix it ends where a language has no document left.
    """
    choice = random.Random(f"instruct-pretrain/{seed}")
    texts = _once(in_turn(documents, config.mix, choice))
    for number in itertools.count():
        seeds = list(itertools.islice(texts, config.rounds))
        if not seeds or (number and len(seeds) < config.rounds):
            return
        yield Task(seeds=tuple(_passage(each, config.chars, choice) for each in seeds), seed=number)


def _once(documents: Iterator[Document]) -> Iterator[Document]:
    """Yield documents up to the first that comes again."""
    seen: set[str] = set()
    for document in documents:
        if document.sha256 in seen:
            return
        seen.add(document.sha256)
        yield document


def _passage(document: Document, chars: int, choice: random.Random) -> Document:
    """Cut a passage of whole lines, as long as is allowed."""
    if len(document.text) <= chars:
        return document
    lines = document.text.splitlines(keepends=True)
    begin = choice.randrange(len(lines))
    end, size = begin, 0
    while end < len(lines) and size + len(lines[end]) <= chars:
        size += len(lines[end])
        end += 1
    text = "".join(lines[begin:end])
    if not text.strip():
        return replace(document, text=document.text[:chars])
    return replace(document, text=text, source=f"{document.source}:{begin + 1}-{end}")


def write(task: Task, frame: Frame) -> Steps[list[Draft | Reject]]:
    """Ask for the pairs of one text after the other; each request shows what came before."""
    made: list[Draft | Reject] = []
    before: list[tuple[str, Pairs]] = []
    for number, document in enumerate(task.seeds, start=1):
        text = document.text.strip()
        answer = yield from ask(_question(before, text, frame))
        reason, detail = fault_of(answer)
        if reason and reason != "unfinished answer":  # of a list of pairs the whole ones are good
            made.append(Reject(reason=reason, detail=detail, document=document))
            continue
        pairs = pairs_in(answer.text)
        if not pairs:
            made.append(Reject(reason="no pairs in the answer", document=document, text=answer.text))
            continue
        before.append((text, pairs))
        made += [
            Draft(
                instruction=f"{text}\n\n{question}", response=response, language=document.language, document=document,
                meta={"round": number},
            )
            for question, response in pairs
        ]  # fmt: skip
    return made


def pairs_in(text: str) -> Pairs:
    """Return the whole pairs of an answer; of equal questions the first."""
    found: dict[str, tuple[str, str]] = {}
    for question, response in PAIR.findall(text):
        if question.strip() and response.strip():
            found.setdefault(same_key(question), (question.strip(), response.strip()))
    return list(found.values())


def _question(before: list[tuple[str, Pairs]], text: str, frame: Frame) -> Question:
    if frame.style != "completion":
        return frame.invent(render("instruct_pretrain", before=before, text=text, count=frame.config.tasks))
    # The back end puts the first BOS.
    whole = "".join(
        f"<CON> {old} </CON>\n\n" + "\n\n".join(f"<QUE> {q} <ANS> {a} </END>" for q, a in pairs) + "</s><s> "
        for old, pairs in before
    )
    request = Request(instruction=None, prefix=f"{whole}<CON> {text} </CON>\n\n", stop=("<CON>",))
    return Question(request=request, sampling=frame.inventing)


METHODS.register("instruct-pretrain")(
    Method(
        plan=plan,
        write=write,
        most=lambda config: config.rounds * config.tasks,
        checked=False,
        completes=True,
    )
)
