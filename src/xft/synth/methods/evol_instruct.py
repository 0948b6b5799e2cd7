"""Evol-Instruct for code (WizardCoder, arXiv 2306.08568): an instruction is made harder, round after round.

Each round draws one of five evolutions. An evolved instruction is dropped, and the one before it evolves on, when it
is empty, has few words, repeats the template's words, or the teacher finds that it asks the same (WizardLM's rules).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from xft.synth.config import SynthConfig
from xft.synth.methods.method import METHODS, Frame, Method, in_turn, solved
from xft.synth.rules import copies, fault_of, same_key
from xft.synth.task import Document, Draft, Reject, Steps, Task, ask
from xft.synth.templates import render

EVOLUTIONS = ("constraint", "rarer", "deeper", "misleading", "faster")
"""Add a requirement; make a common one rarer; need more steps; show erroneous code; bound time or space."""
FEWEST_WORDS = 4
TEMPLATE_WORDS = ("given task", "rewritten task", "new task", "original task", "the task above", "harder version")
"""Words of the template that an instruction of its own has no use for."""


VERDICT = re.compile(r"(\bnot |n['’]t )?(?:the )?\b(same|different)\b", re.I)


def differs(judgement: str) -> bool:
    """Tell whether the teacher found two tasks different, by the first of the two words that it was asked for."""
    found = VERDICT.search(judgement)
    return found is not None and (found[2].lower() == "different") != bool(found[1])


def plan(documents: Sequence[Document], config: SynthConfig, seed: int) -> Iterator[Task]:
    """Take each instruction once, in a shuffled order."""
    choice = random.Random(f"evol-instruct/{seed}")
    seen: set[str] = set()
    for number, document in enumerate(in_turn(documents, config.mix, choice)):
        if number >= 10 * len(documents) or len(seen) == len(documents):  # a mix may leave languages out
            return
        if document.sha256 not in seen:
            seen.add(document.sha256)
            yield Task(seeds=(replace(document, text=document.text[: config.chars]),), seed=number)


def write(task: Task, frame: Frame) -> Steps[list[Draft | Reject]]:
    """Evolve for some rounds; each round that succeeds gives a pair."""
    choice = random.Random(f"{frame.exact.seed}/{task.document.sha256}")
    document, current = task.document, task.document.text.strip()
    made: list[Draft | Reject] = []
    for number in range(1, frame.config.rounds + 1):
        evolution = choice.choice(EVOLUTIONS)
        prompt = render("evol_instruct", instruction=current, evolution=evolution)
        evolved = yield from ask(frame.invent(prompt, sample=number))
        reason, detail = fault_of(evolved)
        text = evolved.text.strip()
        if not reason:
            reason, detail = _elimination(current, text)
        if not reason:
            judgement = yield from ask(frame.work_out(render("equal", first=current, second=text)))
            fault, detail = fault_of(judgement)
            if fault:
                reason = f"judgement: {fault}"
            elif not differs(judgement.text):
                reason = "no information gain"
        if reason:
            made.append(Reject(reason=f"evolution: {reason}", detail=detail, document=document, text=text))
            continue
        current = text
        answer = yield from ask(frame.work_out(render("answer", instruction=current, domain="", examples=[])))
        made.append(solved(current, answer, document.language, document, evolution=evolution, round=number))
    return made


def _elimination(before: str, after: str) -> tuple[str, str]:
    """Return why an evolved instruction is dropped, and a detail."""
    if len(after.split()) < FEWEST_WORDS:
        return "too few words", after
    if same_key(before) == same_key(after):
        return "no information gain", "the same words"
    if phrase := copies(after, TEMPLATE_WORDS):
        return "repeats the template", phrase
    return "", ""


METHODS.register("evol-instruct")(
    Method(plan=plan, write=write, most=lambda config: config.rounds, temperature=1.0, top_p=0.9)
)
