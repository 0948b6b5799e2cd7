"""Self-Instruct for a domain, as Self-MoE specialises a model (arXiv 2406.12034): brainstorm tasks, then answer them.

Seeds are instructions, with responses where there are any. A request for new tasks shows 3 seeds and samples; a request
for a response shows 5 seeds that have one, and is greedy.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from xft.synth.config import SynthConfig
from xft.synth.methods.method import METHODS, Frame, Method, no_such_language, solved
from xft.synth.rules import fault_of
from xft.synth.task import Document, Draft, Reject, Steps, Task, ask
from xft.synth.templates import render

SHOWN_TASKS, SHOWN_PAIRS = 3, 5
FEWEST_WORDS = 4
ITEM = re.compile(r"^[ \t]*(?:\*\*)?\d+[.):](?:\*\*)?[ \t]+", re.MULTILINE)


def plan(documents: Sequence[Document], config: SynthConfig, seed: int) -> Iterator[Task]:
    """Draw seeds for one request after the other, for ever; with a mix, those of a request have one language."""
    pool = {language: [each for each in documents if each.language == language] for language in config.mix}
    pool = pool or {"": list(documents)}
    for language, own in pool.items():
        if not own:
            raise no_such_language(language, documents)
    for number in itertools.count():
        choice = random.Random(f"self-instruct/{seed}/{number}")
        (language,) = choice.choices(list(pool), weights=list(config.mix.values()) or None)
        usable = pool[language]
        pairs = [document for document in usable if document.response]
        tasks = choice.sample(usable, min(SHOWN_TASKS, len(usable)))
        examples = choice.sample(pairs, min(SHOWN_PAIRS, len(pairs)))
        seeds = (replace(each, text=each.text[: config.chars]) for each in [*tasks, *examples])
        yield Task(seeds=tuple(seeds), seed=number)


def write(task: Task, frame: Frame) -> Steps[list[Draft | Reject]]:
    """Ask for a list of new tasks, then for a response to each."""
    config = frame.config
    licenses = " AND ".join(sorted({seed.license for seed in task.seeds}))
    document = replace(task.document, license=licenses)  # an answer may hold something of each
    seeds = sorted({seed.source for seed in task.seeds})
    count = min(SHOWN_TASKS, len(set(task.seeds)))  # where there are fewer, each is a task, and examples are among them
    shown = [seed.text.strip() for seed in task.seeds[:count]]
    prompt = render("brainstorm", domain=config.domain, examples=shown, count=config.tasks)
    listed = yield from ask(frame.invent(prompt, sample=task.seed))
    reason, detail = fault_of(listed)
    if reason:
        return [Reject(reason=f"tasks: {reason}", detail=detail, document=document)]
    tasks = tasks_in(listed.text)[: config.tasks]
    if not tasks:
        return [Reject(reason="tasks: no list in the answer", document=document, text=listed.text)]
    examples = [seed for seed in task.seeds[count:] if seed.response]
    prompts = [render("answer", instruction=text, domain=config.domain, examples=examples) for text in tasks]
    answers = yield [frame.work_out(each) for each in prompts]
    return [
        solved(text, answer, document.language, document, domain=config.domain, seeds=seeds)
        for text, answer in zip(tasks, answers, strict=True)
    ]


def tasks_in(text: str) -> list[str]:
    """Return the items of a numbered list, those of few words left out."""
    items = [item.strip() for item in ITEM.split(text)[1:]]
    return list(dict.fromkeys(item for item in items if len(item.split()) >= FEWEST_WORDS))


METHODS.register("self-instruct")(
    Method(plan=plan, write=write, most=lambda config: config.tasks, temperature=1.0, top_p=0.98)
)
