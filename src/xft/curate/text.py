"""Steps about prose: DCLM's heuristics, Gopher's repetition rules, natural language.

Numbers: DataComp-LM (arXiv 2406.11794, appendix), which takes them from Gopher (arXiv 2112.11446) and RefinedWeb. Words
are what white space separates. DCLM edits lines; a step only keeps or rejects, so `boilerplate` rejects what DCLM would
reject after its edits and leaves the rest as it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any

from pydantic import Field

from xft.curate.step import prose_of, step
from xft.data.example import Example
from xft.errors import MissingExtraError
from xft.recipe import Section

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
BULLETS = ("•", "‣", "◦", "-", "*", "●", "–")
COUNTER = re.compile(
    r"\s*\d+(?:[.,]\d+)?[km]?\s+(?:likes?|shares?|comments?|retweets?|reposts?|quotes?|views?)\s*", re.I
)
PHRASES = ("items in cart", "Read more...", "Sign-in")
HAS_LETTER = re.compile(r"[^\W\d_]")
HAS_WORD = re.compile(r"\w")
Share = Annotated[float, Field(ge=0, le=1)]


class WordsOptions(Section):
    """Limits of DCLM's heuristics."""

    min_words: Annotated[int, Field(ge=0)] = 50
    """Least words, lone punctuation not counted."""
    max_words: Annotated[int, Field(ge=1)] = 100_000
    """Most words."""
    min_mean_word: Annotated[float, Field(ge=0)] = 3
    """Least mean characters of a word."""
    max_mean_word: Annotated[float, Field(gt=0)] = 10
    """Most mean characters of a word."""
    max_symbols: Share = 0.1
    """Most hash signs, and most ellipses, for each word."""
    max_bullets: Share = 0.9
    """Largest share of lines that begin with a bullet."""
    max_ellipses: Share = 0.3
    """Largest share of lines that end in an ellipsis."""
    max_no_letter: Share = 0.2
    """Largest share of words without a letter."""
    min_stop_words: Annotated[int, Field(ge=0)] = 2
    """Least English stop words, repeats counted."""


@step("words", WordsOptions)
def words(record: Example, options: WordsOptions) -> str | None:
    """Prose by its words and lines (DCLM's heuristics, after Gopher)."""
    text = record.response
    every = text.split()
    real = [word for word in every if HAS_WORD.search(word)]
    if len(real) < options.min_words:
        return f"under {options.min_words} words"
    if len(real) > options.max_words:
        return f"over {options.max_words} words"
    mean = sum(map(len, real)) / max(len(real), 1)
    if not options.min_mean_word <= mean <= options.max_mean_word:
        return "mean word length"
    if max(text.count("#"), text.count("...") + text.count("…")) > options.max_symbols * len(every):
        return "many hash signs or ellipses"
    lines = [line for line in text.splitlines() if line.strip()]
    if sum(line.lstrip().startswith(BULLETS) for line in lines) > options.max_bullets * len(lines):
        return "mostly bullets"
    if sum(line.rstrip().endswith(("...", "…")) for line in lines) > options.max_ellipses * len(lines):
        return "many lines end in an ellipsis"
    if sum(not HAS_LETTER.search(word) for word in every) > options.max_no_letter * len(every):
        return "many words without a letter"
    if sum(word.lower() in STOP_WORDS for word in every) < options.min_stop_words:
        return "few stop words"
    return None


class RepetitionOptions(Section):
    """Gopher's table A1."""

    lines: Share = 0.30
    """Largest share of lines, and of paragraphs, that repeat an earlier one."""
    line_characters: Share = 0.20
    """Largest share of characters in such lines, and in such paragraphs."""
    top: dict[int, Share] = Field({2: 0.20, 3: 0.18, 4: 0.16})
    """Words of an n-gram, and the largest share of characters of the most frequent one."""
    repeated: dict[int, Share] = Field({5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10})
    """Words of an n-gram, and the largest share of characters in repeated ones."""


@step("repetition", RepetitionOptions)
def repetition(record: Example, options: RepetitionOptions) -> str | None:
    """Prose that repeats itself (Gopher)."""
    text = record.response
    for what, pieces in (("paragraphs", re.split(r"\n\s*\n", text.strip())), ("lines", text.split("\n"))):
        pieces = [piece.strip() for piece in pieces if piece.strip()]
        again = _again(pieces)
        if len(again) > options.lines * len(pieces):
            return f"repeated {what}"
        if sum(map(len, again)) > options.line_characters * len(text):
            return f"characters in repeated {what}"
    split = text.split()
    for n, share in options.top.items():
        grams = Counter(zip(*(split[start:] for start in range(n)), strict=False))
        if grams:
            gram, count = grams.most_common(1)[0]
            if count > 1 and count * sum(map(len, gram)) > share * len(text):
                return f"one run of {n} words again and again"
    for n, share in options.repeated.items():
        if _repeated_characters(split, n) > share * len(text):
            return f"repeated runs of {n} words"
    return None


def _again(pieces: Sequence[str]) -> list[str]:
    """Return the pieces that stand earlier already."""
    seen: set[str] = set()
    return [piece for piece in pieces if piece in seen or seen.add(piece)]  # type: ignore[func-returns-value]


def _repeated_characters(split: Sequence[str], n: int) -> int:
    """Count the characters of words in runs of n that stand earlier already; no word counts twice."""
    if len(split) < 2 * n:
        return 0
    grams = list(zip(*(split[start:] for start in range(n)), strict=False))
    if len(set(grams)) == len(grams):
        return 0
    seen: set[tuple[str, ...]] = set()
    characters, at = 0, 0
    while at < len(grams):
        if grams[at] in seen:
            characters += sum(map(len, grams[at]))
            at += n
        else:
            seen.add(grams[at])
            at += 1
    return characters


class BoilerplateOptions(Section):
    """What DCLM's line rules would take away."""

    max_removed: Share = 0.05
    """Largest share of words in lines that are boilerplate."""
    uppercase: Share = 0.5
    """Lines with a larger share of capitals among the characters are boilerplate."""


@step("boilerplate", BoilerplateOptions)
def boilerplate(record: Example, options: BoilerplateOptions) -> str | None:
    """Pages that lose more than a few words when DCLM drops lines: capitals, numbers, counters, one word."""
    total = removed = 0
    for line in record.response.split("\n"):
        count = len(line.split())
        total += count
        if count and _is_boilerplate(line, count, options.uppercase):
            removed += count
    return "boilerplate lines" if removed > options.max_removed * total else None


def _is_boilerplate(line: str, count: int, uppercase: float) -> bool:
    if count < 2 or (count <= 10 and any(phrase in line for phrase in PHRASES)):
        return True
    bare = line.strip()
    return (
        sum(map(str.isupper, bare)) > uppercase * len(bare)
        or bare.replace(" ", "").isdigit()
        or COUNTER.fullmatch(bare) is not None
    )


class LanguageOptions(Section):
    """Which natural languages are kept."""

    keep: tuple[str, ...] = ("en",)
    """ISO 639-1 codes."""
    min_probability: Share = 0.65
    """Least probability of the language found."""
    characters: Annotated[int, Field(ge=1)] = 500
    """Look at so many of the first characters."""


@step("language", LanguageOptions)
def language(record: Example, options: LanguageOptions) -> str | None:
    """The natural language of a document, or of a pair's instruction.

    Raises:
        MissingExtraError: py3langid is not installed.
    """
    found, probability = _identifier().classify(prose_of(record)[: options.characters])
    if found not in options.keep:
        return f"language {found}"
    return f"language {found} in doubt" if probability < options.min_probability else None


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise MissingExtraError("the step language needs py3langid: pip install 'xft[data]'") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
