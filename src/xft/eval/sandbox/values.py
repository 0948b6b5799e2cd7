"""Plain values as bytes: what a candidate returned, carried to the process that compares.

Tagged JSON. A list, str, bool, None, float and small int stand for themselves; all else is an object of one key:

    {"t": [...]} tuple     {"s": [...]} set       {"f": [...]} frozenset       {"d": [key, value, ...]} dict
    {"i": hex} large int   {"c": [re, im]}        {"b": hex} bytes             {"e": 0} Ellipsis
    {"m": text} Decimal    {"q": [hex, hex]} Fraction
    {"a": [dtype, shape, base64]} numpy array     {"g": [dtype, base64]} numpy scalar
    {"o": name} Opaque

Both sides use this file; a candidate's interpreter reads it by its path, so it needs the standard library of Python
3.9 alone. A candidate that patches builtins, json or numpy makes its own values unreadable, and nothing else.
"""

from __future__ import annotations

import base64
import json
import math
import re
import sys
from decimal import Decimal
from fractions import Fraction
from types import ModuleType
from typing import Any

MAX_DEPTH = 100
MAX_NAME = 200
MAX_FRACTION = 10_000
SMALL = 10**18
DTYPE = re.compile(r"[<>|][biufcSU]\d+|[<>][mM]8(\[([1-9]\d{0,8})?([YMWDhms]|[munpfa]s)\])?")
"""Kinds of numpy data that are bytes and nothing else: no objects, no structures."""
MANY = 100
SAME_HASH = 50
SEQUENCES = frozenset("tsfd")

_dumps = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
_loads = json.JSONDecoder(parse_constant=float).decode  # a new NaN each time: lists find one and the same NaN equal
_name_of = type.__dict__["__name__"].__get__
_module_of = type.__dict__["__module__"].__get__
_numerator_of = Fraction.__dict__["_numerator"].__get__
_denominator_of = Fraction.__dict__["_denominator"].__get__
SCALARS = frozenset({type(None), bool, int, float, str})
PLAIN_IDS = frozenset(map(id, SCALARS - {int}))
"""Types go by their ids: to hash or compare a type asks its metaclass."""


class Opaque:
    """A value that is no plain data; equal to nothing but itself."""

    __slots__ = ("type_name",)

    def __init__(self, type_name: str) -> None:
        self.type_name = type_name

    def __repr__(self) -> str:
        return f"<{self.type_name}>"


def encode(value: Any) -> bytes:
    """Return a value as bytes; whatever can't be read becomes Opaque.

    Never raises, and calls no method of a value's own class: instances of subclasses of plain types are read by the
    plain type's methods, so a lying `__iter__`, `__eq__`, `__class__` or `__reduce__` isn't asked. A value that holds
    itself, or is nested deeper than MAX_DEPTH, is Opaque from there on.
    """
    try:
        return _dumps(_tagged(value, 0)).encode("utf-8", "surrogatepass")
    except:  # noqa: E722 - a low recursion limit, a signal handler or patched builtins of the candidate's strike anywhere
        return b'{"o":"unreadable"}'


def decode(data: bytes) -> Any:
    """Return the value in bytes that may come from anyone.

    Raises:
        ValueError: they are no encoding of a value.
    """
    try:
        return _untagged(_loads(data.decode("utf-8", "surrogatepass")), 0)
    except (ValueError, TypeError, KeyError, RecursionError, ArithmeticError, MemoryError) as error:
        raise ValueError(f"not an encoded value: {type(error).__name__}: {_printable(str(error))}") from None


def _tagged(value: Any, depth: int) -> Any:
    """Return what JSON can write; every object in it is of a plain type exactly."""
    kind = type(value)
    if id(kind) in PLAIN_IDS:
        return value
    if kind is int:
        return value if -SMALL < value < SMALL else {"i": hex(value)}
    if depth > MAX_DEPTH:
        return {"o": "nested too deeply"}
    if issubclass(kind, list):
        return _items(list.__getitem__(value, slice(None)), depth)
    if issubclass(kind, tuple):
        return {"t": _items(list(tuple.__iter__(value)), depth)}
    if issubclass(kind, dict):
        return {"d": _items([part for item in list(dict.items(value)) for part in item], depth)}
    if issubclass(kind, set):
        return {"s": _items(list(set.__iter__(value)), depth)}
    if issubclass(kind, frozenset):
        return {"f": _items(list(frozenset.__iter__(value)), depth)}
    numpy: Any = sys.modules.get("numpy")
    if type(numpy) is ModuleType:
        if issubclass(kind, numpy.ndarray):
            return _array(numpy.ndarray, value, kind)
        if issubclass(kind, numpy.generic):  # before float and str, which some numpy scalars are too
            return _scalar(numpy.generic, value, kind)
    if issubclass(kind, int):
        return _tagged(int.__pos__(value), depth)
    if issubclass(kind, float):
        return float.__pos__(value)
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, complex):
        value = complex.__pos__(value)
        return {"c": [value.real, value.imag]}
    if issubclass(kind, bytes):
        return {"b": bytes.hex(value)}
    if value is ...:
        return {"e": 0}
    if kind is Decimal:
        return {"m": Decimal.__str__(value)}
    if kind is Fraction:
        return _fraction(_numerator_of(value), _denominator_of(value))
    return {"o": _kind_name(kind)}


def _items(items: list[Any], depth: int) -> list[Any]:
    """Tag a list's items; one of scalars alone, the common case, is checked without a loop in Python."""
    kinds = set(map(id, map(type, items)))
    if kinds <= PLAIN_IDS:
        return items
    if kinds == {id(int)} and min(items) > -SMALL and max(items) < SMALL:
        return items
    return [_tagged(item, depth + 1) for item in items]


def _fraction(numerator: Any, denominator: Any) -> dict[str, Any]:
    """Tag a Fraction, whose parts its owner can set to anything."""
    if type(numerator) is int and type(denominator) is int:
        return {"q": [hex(numerator), hex(denominator)]}
    return {"o": "fractions.Fraction"}


def _array(base: Any, value: Any, kind: type) -> dict[str, Any]:
    """Tag a numpy array, read by the methods of numpy's own class."""
    dtype = base.dtype.__get__(value).str
    if not DTYPE.fullmatch(dtype):
        return {"o": _kind_name(kind)}
    return {"a": [dtype, list(base.shape.__get__(value)), base64.b64encode(base.tobytes(value)).decode()]}


def _scalar(base: Any, value: Any, kind: type) -> dict[str, Any]:
    """Tag a numpy scalar."""
    dtype = base.dtype.__get__(value).str
    if not DTYPE.fullmatch(dtype):
        return {"o": _kind_name(kind)}
    return {"g": [dtype, base64.b64encode(base.tobytes(value)).decode()]}


def _kind_name(kind: type) -> str:
    """Return a type's name with its module, asking neither its metaclass nor itself."""
    module = _module_of(kind)
    prefix = f"{module}." if type(module) is str and module != "builtins" else ""
    return f"{prefix}{_name_of(kind)}"[:MAX_NAME]


def _untagged(value: Any, depth: int) -> Any:
    """Return the value that a piece of JSON stands for."""
    if type(value) in SCALARS:
        return value
    if depth > MAX_DEPTH + 1:
        raise ValueError("nested too deeply")
    if type(value) is list:
        if SCALARS.issuperset(map(type, value)):
            return value
        return [_untagged(item, depth + 1) for item in value]
    ((tag, body),) = value.items()
    if tag in SEQUENCES:
        items = _untagged(_typed(body, list), depth)
        if tag == "t":
            return tuple(items)
        if tag == "d":
            if len(items) % 2:
                raise ValueError("a dict has a key without a value")
            return dict(zip(_hashable(items[::2]), items[1::2]))  # noqa: B905 - Python 3.9
        return set(_hashable(items)) if tag == "s" else frozenset(_hashable(items))
    if tag == "i":
        return int(_typed(body, str), 16)
    if tag == "c":
        real, imaginary = body
        return complex(_typed(real, float), _typed(imaginary, float))
    if tag == "b":
        return bytes.fromhex(body)
    if tag == "e":
        return ...
    if tag == "m":
        return Decimal(_typed(body, str))
    if tag == "q":
        numerator, denominator = (int(_short(part), 16) for part in body)
        return Fraction(numerator, denominator)
    if tag == "o":
        return Opaque(_printable(_typed(body, str)))
    if tag == "a":
        dtype, shape, text = body
        return _numpy_array(dtype, tuple(_typed(size, int) for size in shape), text)
    if tag == "g":
        dtype, text = body
        array = _numpy_array(dtype, (1,), text)
        return array if isinstance(array, Opaque) else array[0]
    raise ValueError(f"unknown tag {tag!r}")


def _short(text: Any) -> str:
    """Return the digits of a number that is quickly reduced."""
    if len(_typed(text, str)) > MAX_FRACTION:
        raise ValueError("a fraction of very large numbers")
    return str(text)


def _typed(value: Any, kind: type) -> Any:
    """Return a value that is of this very type."""
    if type(value) is not kind:
        raise ValueError(f"{kind.__name__} expected")
    return value


def _hashable(items: list[Any]) -> list[Any]:
    """Return items for a set or the keys of a dict; refuses many of one hash, which would take quadratic time."""
    if len(items) > MANY:
        hashes = sorted(map(hash, items))
        if any(a == b for a, b in zip(hashes, hashes[SAME_HASH:])):  # noqa: B905 - Python 3.9
            raise ValueError("too many keys of the same hash")
    return items


def _numpy_array(dtype: Any, shape: tuple[int, ...], text: Any) -> Any:
    """Return an array of its own memory; Opaque where numpy is not installed."""
    if not DTYPE.fullmatch(dtype):
        raise ValueError("no plain dtype")
    data = base64.b64decode(text, validate=True)
    try:
        import numpy
    except ImportError:
        return Opaque("numpy data; numpy is not installed here")
    kind = numpy.dtype(dtype)
    if min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize != len(data):
        raise ValueError("an array's shape and data differ")
    if kind.kind == "U" and (numpy.frombuffer(data, kind.byteorder + "u4") > sys.maxunicode).any():
        raise ValueError("an array of text holds no text")
    return numpy.ndarray(shape, kind, data).copy()


def _printable(text: str) -> str:
    """Return text cut short and safe to print."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:MAX_NAME])
