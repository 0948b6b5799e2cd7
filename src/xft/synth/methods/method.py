"""What a method is. To add one: write a module here that registers a `Method`, its prompts in `synth/prompts/`, and
import it in `__init__.py`; `tests/synth/test_synth_methods.py` then checks its laws.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from xft.errors import DataError, RecipeError
from xft.eval.benchmark import Request
from xft.eval.generate import Answer, Sampling
from xft.registry import Registry
from xft.synth.config import SynthConfig
from xft.synth.rules import FENCED, SHORT, code_in, fault_of, parsed
from xft.synth.task import Document, Draft, Question, Reject, Steps, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """What is the same for all tasks of a run."""

    config: SynthConfig
    style: str
    """The teacher's prompt style."""
    inventing: Sampling
    """Of requests that make something new."""
    exact: Sampling
    """Of solutions, tests and judgements: greedy."""
    voting: Sampling
    """Of fresh solutions: as in self-consistency (arXiv 2203.11171)."""

    def invent(self, prompt: str, *, sample: int = 0) -> Question:
        """Return a request for something new."""
        return Question(request=Request(instruction=prompt, prefix="", stop=()), sampling=self.inventing, sample=sample)

    def think_again(self, prompt: str, *, sample: int) -> Question:
        """Return a request with one right answer, asked several times over to see whether the answers agree."""
        return Question(request=Request(instruction=prompt, prefix="", stop=()), sampling=self.voting, sample=sample)

    def work_out(self, prompt: str) -> Question:
        """Return a request with one right answer."""
        return Question(request=Request(instruction=prompt, prefix="", stop=()), sampling=self.exact)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way from seeds to pairs."""

    plan: Callable[[Sequence[Document], SynthConfig, int], Iterator[Task]]
    """Gives tasks until the seeds are used up, the same ones for a seed; from (documents, settings, seed)."""
    write: Callable[[Task, Frame], Steps[list[Draft | Reject]]]
    """Works on a task."""
    most: Callable[[SynthConfig], int]
    """Pairs that one task can give."""
    temperature: float = 0.0
    top_p: float = 1.0
    checked: bool = True
    """Its responses are solutions that can be run."""
    completes: bool = False
    """It can prompt a teacher that only continues text (style `completion`), such as an instruction synthesizer."""


METHODS: Registry[Method] = Registry("method")
PROSE = "text"
"""The language of a seed whose answers need no code, as Self-MoE's domains of knowledge and reasoning."""


def frame_of(method: Method, config: SynthConfig, style: str, seed: int) -> Frame:
    """Join the settings with the method's own.

    Raises:
        RecipeError: a teacher that only continues text, and a method that has nothing for it to continue.
    """
    if style == "completion" and not method.completes:
        able = ", ".join(name for name, each in METHODS.items() if each.completes)
        raise RecipeError(f"prompt: {config.method} needs a teacher that takes instructions; completion is for {able}")
    exact = Sampling(seed=seed, max_new_tokens=config.max_new_tokens)
    temperature = method.temperature if config.temperature is None else config.temperature
    top_p = method.top_p if config.top_p is None else config.top_p
    inventing = Sampling(temperature=temperature, top_p=top_p, seed=seed, max_new_tokens=config.max_new_tokens)
    voting = Sampling(temperature=0.7, top_p=0.95, seed=seed, max_new_tokens=config.max_new_tokens)
    return Frame(config=config, style=style, inventing=inventing, exact=exact, voting=voting)


def in_turn(documents: Sequence[Document], mix: Mapping[str, float], choice: random.Random) -> Iterator[Document]:
    """Yield documents for ever: shuffled, or with a mix each language in its share; each comes again after all others.

    Raises:
        DataError: a language of the mix that no document has.
    """
    if not mix:
        while True:
            yield from choice.sample(documents, len(documents))
    turns = {}
    for language in mix:
        own = [document for document in documents if document.language == language]
        if not own:
            raise no_such_language(language, documents)
        turns[language] = in_turn(own, {}, random.Random(choice.random()))
    while True:
        (language,) = choice.choices(list(mix), weights=list(mix.values()))
        yield next(turns[language])


def no_such_language(language: str, documents: Sequence[Document]) -> DataError:
    """Return the error for a language of the mix that no document has."""
    had = ", ".join(sorted({document.language for document in documents}))
    return DataError(f"mix: no seed document in {language}; there are: {had}")


def solved(instruction: str, answer: Answer, language: str, document: Document, **meta: object) -> Draft | Reject:
    """Make a pair of an instruction and the answer that should solve it: in code, but to an instruction of prose."""
    reason, detail = fault_of(answer)
    if reason:
        return Reject(reason=reason, detail=detail, document=document, text=instruction)
    response = answer.text.strip()
    fenced = fenced_language(response)
    prose, language = language == PROSE and not fenced, fenced or language
    fault = "" if prose else fault_of_code(response, language)
    if fault:
        return Reject(reason=fault, document=document, text=f"{instruction}\n\n{response}")
    return Draft(instruction=instruction, response=response, language=language, document=document, meta=dict(meta))


def fault_of_code(response: str, language: str) -> str:
    """Say why a response is no solution in code, "" where it may be one."""
    code = code_in(response, language)
    if not code:
        return "no code in the solution"
    if language == "python" and parsed(code) is None:
        return "solution does not parse"
    return ""


def fenced_language(response: str) -> str:
    """Return the language that a response's first named block of code is in, "" without one."""
    long = {short: name for name, shorts in SHORT.items() for short in shorts}
    named = (name.lower() for name, _ in FENCED.findall(response) if name)
    return next((long.get(name, name) for name in named), "")
