"""The one data record."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """An instruction and its response; whatever else came with it is in `meta`."""

    instruction: str
    response: str
    source: str = ""
    """File or data set, with the record's number."""
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Return the hash of what is asked and answered, wherever it was read from."""
        return hashlib.sha256(json.dumps([self.instruction, self.response]).encode()).hexdigest()

    @property
    def is_document(self) -> bool:
        """Tell whether it is a raw document: nothing is asked, the response is the text."""
        return self.instruction == ""
