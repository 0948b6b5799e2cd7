"""What can't be an answer: refusals, empty words, unfinished texts, templates given back. Pure."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterable

from xft.eval.extract import parse
from xft.eval.generate import Answer

FENCED = re.compile(
    r"^[ \t]*+(?:```|~~~)[ \t]*+([\w+#.-]*+)[^\n]*+\n(.*?)(?:^[ \t]*+(?:```|~~~)[ \t]*+$|\Z)", re.M | re.S
)
SHORT = {
    "python": ("py", "python3"), "javascript": ("js",), "typescript": ("ts",), "cpp": ("c++",), "shell": ("bash", "sh"),
}  # fmt: skip
"""Other names that a fence gives a language."""
REFUSALS = re.compile(
    r"\b(?:i(?:'|’)?m sorry|i am sorry|sorry, (?:but )?i|i can(?:'|’)?t (?:help|assist|do)|i cannot|i(?:'|’)?m unable|"
    r"i am unable|as an ai\b|as a language model)",
    re.IGNORECASE,
)
REFUSAL_WORDS = 80
"""An apology in an answer of fewer words is a refusal (WizardLM's rule for "sorry")."""
STOP_WORDS = re.compile(
    r"a|about|all|an|and|any|are|as|at|be|been|but|by|can|could|did|do|does|for|from|had|has|have|he|her|his|how|i|if|"
    r"in|into|is|it|its|just|may|me|more|my|no|not|of|on|one|or|our|out|she|should|so|some|such|than|that|the|their|"
    r"them|then|there|these|they|this|to|up|was|we|were|what|when|which|who|will|with|would|you|your"
)


def fault_of(answer: Answer) -> tuple[str, str]:
    """Return why an answer can't be used, and a detail; two empty texts for one that can."""
    text = answer.text.strip()
    if answer.finish == "refused":
        return "refused by the teacher's server", answer.text
    if not text:
        return "empty answer", ""
    if answer.finish in ("length", "broken"):
        return "unfinished answer", ""
    if len(text.split()) < REFUSAL_WORDS and REFUSALS.search(text):
        return "refusal", text
    if without_content(text):
        return "no content", text
    return "", ""


def without_content(text: str) -> bool:
    """Tell whether a text is punctuation and stop words only."""
    words = text.lower().translate(str.maketrans(string.punctuation, " " * len(string.punctuation))).split()
    return all(STOP_WORDS.fullmatch(word) for word in words)


def copies(text: str, phrases: Iterable[str]) -> str | None:
    """Return the first of a template's phrases that a text repeats."""
    plain = " ".join(text.lower().split())
    return next((phrase for phrase in phrases if phrase in plain), None)


def sections(text: str, names: Iterable[str]) -> dict[str, str]:
    """Return what stands below each of the headings `## NAME`, without the headings that are missing.

    Teachers vary a heading's marks and case; `# Problem`, `**Problem**:` and `[Problem]` will do. In code, `# Problem`
    is a comment.
    """
    pattern = "|".join(map(re.escape, names))
    heading = re.compile(rf"^[ \t]*+(?:#|\*\*|\[)[#*\[ \t]*+({pattern})\b[*\]: \t]*+$", re.I | re.M)
    fenced = [match.span() for match in FENCED.finditer(text)]
    found = [at for at in heading.finditer(text) if not any(begin <= at.start() < end for begin, end in fenced)]
    ends = [*(match.start() for match in found[1:]), len(text)]
    by_name: dict[str, str] = {}
    for match, end in zip(found, ends, strict=False):
        by_name.setdefault(match[1].lower(), text[match.end() : end].strip())
    return {name: by_name[name.lower()] for name in names if by_name.get(name.lower())}


def code_in(text: str, language: str) -> str:
    """Return the code of an answer: its fenced blocks in a language, or in none, the longest; "" without any."""
    blocks = [(name.lower(), body.rstrip()) for name, body in FENCED.findall(text) if body.strip()]
    named = [body for name, body in blocks if name in (language, *SHORT.get(language, ()))]
    return max(named or [body for name, body in blocks if not name], key=len, default="")


def same_key(*texts: str) -> str:
    """Return a text by which pairs are the same: without white space and case."""
    return "\0".join("".join(text.lower().split()) for text in texts)


def parsed(source: str) -> ast.Module | None:
    """Parse Python, None for what is not, and for what is nested too deeply to be written out again."""
    tree = parse(source)
    try:
        return tree if tree is None or ast.unparse(tree) is not None else None
    except (RecursionError, ValueError):
        return None
