"""The programming languages of MultiPL-E: how an answer, tests and a proof become files, and how they are run."""

from xft.eval.languages.answers import from_chat, from_continuation
from xft.eval.languages.language import Command, Known, Language
from xft.eval.languages.layout import ShapeError
from xft.eval.languages.table import LANGUAGES
from xft.eval.languages.toolchain import Toolchain

__all__ = [
    "LANGUAGES",
    "Command",
    "Known",
    "Language",
    "ShapeError",
    "Toolchain",
    "from_chat",
    "from_continuation",
]
