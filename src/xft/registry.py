"""The one registry behind every extension point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from xft.errors import UnknownNameError, did_you_mean

T = TypeVar("T")


class Registry(dict[str, T], Generic[T]):
    """Map names to entries; an unknown name answers with those that exist."""

    def __init__(self, kind: str, *, also: tuple[str, ...] = ()) -> None:
        """Name the kind of entry, and names that are no entries but may be given too, for messages."""
        super().__init__()
        self.kind, self.also = kind, also
        self.made: dict[str, Callable[[str], T]] = {}

    def register(self, name: str) -> Callable[[Any], Any]:
        """Decorate an entry with its name; refuses a duplicate."""

        def add(entry: Any) -> Any:
            if name in self:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self[name] = entry
            return entry

        return add

    def register_prefix(self, prefix: str) -> Callable[[Any], Any]:
        """Decorate what makes the entry of each name that begins so, out of the name's rest."""

        def add(make: Any) -> Any:
            self.made[prefix] = make
            return make

        return add

    def __missing__(self, name: str) -> T:
        for prefix, make in self.made.items():
            if name.startswith(prefix) and name != prefix:
                return make(name.removeprefix(prefix))
        available = ", ".join([*sorted(self), *self.also])
        raise UnknownNameError(f"unknown {self.kind} {name!r}; available: {available}{did_you_mean(name, self)}")
