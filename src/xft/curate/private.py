"""Steps about what must not be published: secrets and personal data. Their rejects are recorded without the text.

Metadata are published too, so their texts are looked at as well; reasons name the key.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from xft.curate.step import step
from xft.data.example import Example
from xft.recipe import Section

TOKENS = {
    "AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{60,})\b",
    "GitLab token": r"\bglpat-[\w-]{20,}",
    "Hugging Face token": r"\bhf_[A-Za-z]{34,}\b",
    "Google key": r"\bAIza[\w-]{35}\b",
    "OpenAI or Anthropic key": r"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{32,}",
    "Slack token": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    "Stripe key": r"\b[rs]k_live_[A-Za-z0-9]{16,}",
    "npm token": r"\bnpm_[A-Za-z0-9]{36}\b",
    "PyPI token": r"\bpypi-AgE[\w-]{50,}",
    "JSON web token": r"(?<![\w-])eyJ[\w-]{10,}+\.eyJ[\w-]{10,}+\.[\w-]{10,}",
    "private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "password in an address": r"\b[a-z][a-z0-9+.-]{0,30}://[^\s/:@'\"<>{}$]{1,200}:[^\s/:@'\"<>{}$]{4,200}@[\w.-]+",
}
"""Shapes that services give their tokens."""
MARKS = (
    "AKIA",
    "ASIA",
    "gh",
    "github_pat_",
    "glpat-",
    "hf_",
    "AIza",
    "sk-",
    "xox",
    "k_live_",
    "npm_",
    "pypi-",
    "eyJ",
    "PRIVATE",
    "://",
)
"""Text without any of these has no such token; looking for them is quicker."""
TOKEN = re.compile("|".join(f"(?P<t{number}>{shape})" for number, shape in enumerate(TOKENS.values())))
ASSIGNED = re.compile(
    r"(?:passw(?:or)?d|passwd|secret|token|api[_-]?key|access[_-]?key|auth[_-]?key|credential)s?['\"]?\s*"
    r"(?::|=|=>|:=)\s*['\"]([^'\"\s]{16,128})['\"]",
    re.I,
)
SETTING = re.compile(
    r"^[ \t]*(?:export[ \t]+)?[A-Z][A-Z0-9_]{0,60}(?:PASSWORD|PASSWD|SECRET|TOKEN|KEY|CREDENTIALS?)[A-Z0-9_]{0,60}="
    r"([^\s'\"#(\[]{16,128})[ \t]*$",
    re.M,
)
"""A line of a shell's or an .env file's, whose values need no quotes."""
SETTING_MARKS = ("PASSW", "SECRET", "TOKEN", "KEY", "CREDENTIAL")
CREDENTIALS = re.compile(r"://[^@]*@")
"""Of an address, what tells whether it is made up: its host may be called anything."""
LOCAL = re.compile(r"@(?:localhost|127\.|(?:[\w-]+\.)*example\.)", re.I)
SAMPLE = re.compile(r"example|sample|dummy|placeholder|your[_-]|my[_-]|xxxx|changeme|1234|abcd|test|<|\{|\$", re.I)
"""What made-up secrets are made of."""


KEY = re.compile(r"\w{1,40}")


class SecretsOptions(Section):
    """How likely a value must be a secret."""

    min_entropy: Annotated[float, Field(ge=0)] = 3.5
    """Least bits a character of a value that is assigned to a name such as `password`."""


@step("secrets", SecretsOptions, private=True)
def secrets(record: Example, options: SecretsOptions) -> str | None:
    """Tokens by their services' shapes, private keys, passwords in addresses, and random values of such names."""
    return _first(record, lambda text: _secret(text, options))


def _first(record: Example, find: Callable[[str], str | None]) -> str | None:
    """Return what is found in a record's texts first."""
    for text in (record.instruction, record.response):
        if reason := find(text):
            return reason
    for key, value in record.meta.items():
        if reason := find(key):
            return f"{reason} in meta"
        for text in _texts(value):
            if reason := find(text):
                return f"{reason} in meta.{key}" if KEY.fullmatch(key) else f"{reason} in meta"
    return None


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in a value, keys included."""
    match value:
        case str():
            yield value
        case dict():
            for key, part in value.items():
                yield str(key)
                yield from _texts(part)
        case list():
            for part in value:
                yield from _texts(part)


def _secret(text: str, options: SecretsOptions) -> str | None:
    for found in TOKEN.finditer(text) if any(mark in text for mark in MARKS) else ():
        credentials = CREDENTIALS.search(found[0])
        if not SAMPLE.search(credentials[0] if credentials else found[0]) and not LOCAL.search(found[0]):
            return list(TOKENS)[int(str(found.lastgroup)[1:])]
    for shape, signs in ((ASSIGNED, ("'", '"')), (SETTING, SETTING_MARKS)):
        for found in shape.finditer(text) if any(sign in text for sign in signs) else ():
            value = found[1]
            mixed = re.search(r"\d", value) and re.search(r"[A-Za-z]", value)
            if mixed and not SAMPLE.search(value) and entropy(value) >= options.min_entropy:
                return "random value of a secret's name"
    return None


def entropy(text: str) -> float:
    """Return the bits a character, by the characters' own frequencies."""
    total = len(text)
    return -sum(count / total * math.log2(count / total) for count in Counter(text).values())


EMAIL = re.compile(r"(?<![\w.+/-])[A-Za-z0-9][\w.+-]{0,63}@((?:[A-Za-z0-9-]{1,63}\.){1,20}[A-Za-z]{2,24})\b(?!:\S)")
MADE_UP = re.compile(
    r"(?:^|\.)(?:example|test|invalid|localhost|local|internal|domain|email|mail|company|site|mysite|yourdomain|"
    r"mydomain|sample|users\.noreply\.github)\.[a-z.]+$|(?:^|\.)(?:example|test|invalid|localhost)$",
    re.I,
)
IP = re.compile(r"(?<![\w.:-])(?:\d{1,3}\.){3}\d{1,3}(?![\w.-]|:\d+\.)")
PHONE = re.compile(
    r"(?<![\w.+])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}|\(\d{3}\) ?\d{3}-\d{4})(?![\w-])"
)
CARD = re.compile(r"(?<![\w.-])(?:\d[ -]?){12,18}\d(?![\w.-])")
IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?(?!\w)")
FICTITIOUS = re.compile(r"555|(\d)\1{4}|12345|0123|98765")
"""What made-up telephone numbers are made of."""
Kind = Literal["e-mail", "telephone", "address", "card", "iban"]


class PersonalOptions(Section):
    """Which personal data to look for."""

    kinds: tuple[Kind, ...] = ("e-mail", "telephone", "address", "card", "iban")
    """E-mail addresses, telephone numbers, public IPv4 addresses, card numbers and IBANs (check digits verified)."""


@step("personal", PersonalOptions, private=True)
def personal(record: Example, options: PersonalOptions) -> str | None:
    """Data of persons; reserved names, private networks and the usual made-up numbers do not count."""
    return _first(record, lambda text: next((REASONS[kind] for kind in options.kinds if FINDERS[kind](text)), None))


def _email(text: str) -> bool:
    return "@" in text and any(not MADE_UP.search(found[1]) for found in EMAIL.finditer(text))


def _telephone(text: str) -> bool:
    digits = (re.sub(r"\D", "", found[0]) for found in PHONE.finditer(text))
    return any(9 <= len(number) <= 15 and not FICTITIOUS.search(number) for number in digits)


def _address(text: str) -> bool:
    """Find a public IPv4 address; well-known resolvers count as public text."""
    for found in IP.finditer(text):
        try:
            address = ipaddress.IPv4Address(found[0])
        except ValueError:
            continue
        octets = found[0].split(".")
        if address.is_global and octets[0] not in ("1", "2", "8", "9") and len(set(octets)) > 1:
            return True
    return False


def _card(text: str) -> bool:
    for found in CARD.finditer(text):
        digits = re.sub(r"\D", "", found[0])
        if digits[0] in "3456" and not FICTITIOUS.search(digits) and luhn(digits) and not digits.startswith("4111"):
            return True
    return False


def luhn(digits: str) -> bool:
    """Tell whether a card number's check digit is right (ISO/IEC 7812)."""
    doubled = (int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def _iban(text: str) -> bool:
    for found in IBAN.finditer(text):
        bare = found[0].replace(" ", "")
        number = "".join(str(int(character, 36)) for character in bare[4:] + bare[:4])
        if 15 <= len(bare) <= 34 and int(number) % 97 == 1:
            return True
    return False


FINDERS = {"e-mail": _email, "telephone": _telephone, "address": _address, "card": _card, "iban": _iban}
REASONS = {
    "e-mail": "e-mail address",
    "telephone": "telephone number",
    "address": "public IP address",
    "card": "card number",
    "iban": "IBAN",
}
