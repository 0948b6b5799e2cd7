"""OSS-Instruct (Magicoder, arXiv 2312.02120): a few lines of real code inspire a problem and its solution."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from xft.errors import DataError
from xft.synth.config import SynthConfig
from xft.synth.methods.method import METHODS, Frame, Method, fault_of_code, fenced_language, in_turn
from xft.synth.rules import FENCED, fault_of, same_key, sections
from xft.synth.task import Document, Draft, Reject, Steps, Task, ask
from xft.synth.templates import render, title

MISSES = 1000
"""Lines that were used before, drawn one after the other, after which the seeds count as used up."""
SEED_WORDS = re.compile(r"\b(?:code )?(?:snippet|excerpt)s?\b", re.IGNORECASE)


def plan(documents: Sequence[Document], config: SynthConfig, seed: int) -> Iterator[Task]:
    """Draw 1 to `lines` lines from each document of code in turn, none of them twice.

    Raises:
        DataError: no document of code.
    """
    documents = [document for document in documents if document.language != "text"]
    if not documents:
        raise DataError("oss-instruct: no code among the seeds; give other seeds, or use instruct-pretrain for texts")
    choice = random.Random(f"oss-instruct/{seed}")
    seen: set[str] = set()
    misses = 0
    for number, document in enumerate(in_turn(documents, config.mix, choice)):
        shown = _excerpt(document, config.lines, choice)
        key = same_key(shown.text)
        if key in seen or not re.search(r"\w", key):
            misses += 1
            if misses == MISSES:
                return
            continue
        misses = 0
        seen.add(key)
        yield Task(seeds=(shown,), seed=number)


def _excerpt(document: Document, most: int, choice: random.Random) -> Document:
    """Cut consecutive lines out; they may begin in the middle of a function, by design."""
    lines = document.text.splitlines()
    begin = choice.randrange(len(lines))
    shown = lines[begin : begin + choice.randint(1, most)]
    return replace(document, text="\n".join(shown), source=f"{document.source}:{begin + 1}-{begin + len(shown)}")


def write(task: Task, frame: Frame) -> Steps[list[Draft | Reject]]:
    """Ask for a problem and its solution in one answer."""
    document = task.document
    language = "python" if document.language == "unknown" else document.language
    answer = yield from ask(frame.invent(render("oss_instruct", excerpt=document.text, language=title(language))))
    reason, detail = fault_of(answer)
    if reason:
        return [Reject(reason=reason, detail=detail, document=document)]
    parts = sections(answer.text, ("Problem", "Solution"))
    if len(parts) < 2:
        return [Reject(reason="no problem and solution in the answer", document=document, text=answer.text)]
    problem, solution = parts["Problem"], parts["Solution"]
    if SEED_WORDS.search(problem) and not FENCED.search(problem):
        return [Reject(reason="problem refers to the seed", document=document, text=problem)]
    language = fenced_language(solution) or language
    if fault := fault_of_code(solution, language):
        return [Reject(reason=fault, document=document, text=answer.text)]
    return [Draft(instruction=problem, response=solution, language=language, document=document)]


METHODS.register("oss-instruct")(Method(plan=plan, write=write, most=lambda _: 1))
