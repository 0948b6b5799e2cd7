"""The laws of steps: each keeps one record and rejects another with a reason, and changes neither."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from xft.curate.code import text_of_html
from xft.curate.config import StepConfig
from xft.curate.step import DEFAULTS, STEPS, BoundStep, blocks_of, build_steps
from xft.data.example import Example
from xft.errors import DataError, RecipeError, UnknownNameError

PROSE = (
    "The library opens at nine and closes at five, and people of every age come to read or to borrow what they have "
    "found on the shelves. Most of them know the staff by name. On the first floor there is a room with long tables, "
    "where pupils do their work in the afternoon, and beside it a smaller one that is quiet all day.\n\n"
    "Last year the town paid for new lamps, so that one can see well even in winter. Nobody had asked for a garden, "
    "but behind the house there is one now, with benches, a pond and two old trees that give shade."
)
GERMAN = "Die Bücherei öffnet um neun und schließt um fünf, und die Leute lesen dort gern in Ruhe ihre Zeitung."
PYTHON = "def double(value):\n    return 2 * value\n"
JAVA = "class Main { static int twice(int value) { return 2 * value; } }"


def pair(response: str = PYTHON, instruction: str = "Double a number.", **meta: Any) -> Example:
    return Example(instruction=instruction, response=response, source="here:1", meta=meta)


def text(response: str) -> Example:
    return Example(instruction="", response=response, source="here:1")


def fenced(code: str, label: str) -> str:
    return f"Here it is:\n\n```{label}\n{code}\n```\nDone."


KEPT: dict[str, list[Example]] = {
    "schema": [pair(), text(PROSE)],
    "refusal": [pair("Sorry seems to be the hardest word.")],
    "length": [pair(), text(PROSE)],
    "source-file": [
        pair(),
        pair("prose " * 300),
        pair(fenced('<?xml version="1.0"?>\n<a>letters</a>', "xslt")),
        pair(fenced("<p>" + "word word\n" * 20 + "</p>", "html")),
    ],
    "parse": [
        pair(),
        pair(fenced(JAVA, "java")),
        pair(JAVA, language="java"),
        pair("no code here"),
        pair(fenced("x = (", "")),
        pair("1. Write this:\n\n    ```python\n    def f():\n        return 1\n    ```\n"),
        pair(fenced(">>> double(2)\n4", "python")),
        pair(fenced("total nonsense {", "klingon")),
        pair(
            fenced("<ul>" + "<li>one<br><img src='a.png'>" * 1000 + "</ul>" + "<p>two</p><!-- three -->" * 1000, "html")
        ),
    ],
    "words": [text(PROSE)],
    "repetition": [text(PROSE)],
    "boilerplate": [text(PROSE)],
    "language": [text(PROSE), pair(instruction=PROSE)],
    "classifier": [pair("good " * 5)],
    "secrets": [
        pair("key = 'AKIAIOSFODNN7EXAMPLE'"),
        pair("password = 'correct horse'"),
        pair("token = os.environ['SECRET_TOKEN_OF_SERVICE_2']"),
        pair("postgres://user:${PASSWORD}@host/db"),
        pair("postgres://user:hunter2xyz@localhost/db"),
        pair("API_KEY=your_api_key_4711_here\nTOKEN=$(cat /run/token_file_17)\nexport KEY=abcdefghijklmnopq"),
    ],
    "personal": [
        pair("Write to jane@example.com or root@localhost."),
        pair("git clone git@github.com:bob/x.git"),
        pair("ping 192.168.1.20 and 127.0.0.1, version 1.2.3.4, dns 8.8.8.8"),
        pair("call (555) 123-4567 or +1 555 010 9999"),
        pair("fib = [1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144]"),
        pair("order 4000 1234 5678 9011"),
    ],
}
REJECTED: dict[str, list[tuple[Example, str]]] = {
    "schema": [
        (pair(" \n"), "empty response"),
        (pair(instruction=" "), "empty instruction"),
        (pair("same", "same "), "response repeats the instruction"),
        (pair("caf\ufffd"), "replacement characters of a lost encoding"),
        (pair("nul\x00"), "control characters"),
    ],
    "refusal": [
        (pair("I'm sorry, but I can't help with that."), "response declines"),
        (pair("As an AI language model, I have no opinion."), "response declines"),
        (pair("Unfortunately, I am unable to run code."), "response declines"),
    ],
    "length": [
        (pair(instruction="Why?"), "instruction under 8 characters"),
        (pair(instruction="x" * 20_001), "instruction over 20000 characters"),
        (pair("x = 1"), "response under 8 characters"),
        (pair("x" * 40_001), "response over 40000 characters"),
        (pair("x\n" * 1_500), "response over 1500 lines"),
    ],
    "source-file": [
        (
            pair(fenced("\n".join(["value = " + "1 + " * 30 + "1"] * 5), "python")),
            "lines over 100 characters on average",
        ),
        (pair(fenced("x = 1\n" * 40 + "text = '" + "a" * 1000 + "'", "python")), "a line over 1000 characters"),
        (pair(fenced("1, 2, 3, 4, 5, 6, 7\n" * 3, "python")), "under 25% letters"),
        (pair(fenced('<?xml version="1.0"?>\n<a>letters</a>', "xml")), "XML"),
        (pair(fenced('<div class="menu" id="main">Hi</div>\n' * 5, "html")), "HTML with little visible text"),
        (pair(fenced('{"name": "value"}', "json")), "JSON outside 50 to 5000 characters"),
    ],
    "parse": [
        (pair("def double(value:\n    return 2"), "python does not parse"),
        (pair(fenced("print 'hello'", "python")), "python does not parse"),
        (pair(fenced("class Main { int x = ; }", "java")), "java does not parse"),
        (pair("fn main() { let x = ; }", language="rust"), "rust does not parse"),
        (pair(fenced("<p>one</p> <!-- two <p>three</p>", "html")), "html does not parse"),
    ],
    "words": [
        (text("Too short."), "under 50 words"),
        (text("a " * 60), "mean word length"),
        (text(PROSE + " #" * 40), "many hash signs or ellipses"),
        (
            text("\n".join("- " + line for line in PROSE.replace(",", "\n").replace(".", "\n").split("\n"))),
            "mostly bullets",
        ),
        (text("\n".join(PROSE.split()[i] + " that have..." for i in range(20))), "many hash signs or ellipses"),
        (text(PROSE + " 12 -- 34" * 30), "many words without a letter"),
        (text("Katze " * 10 + "Haus Maus laufen " * 20), "few stop words"),
    ],
    "repetition": [
        (text("One line of text.\n" * 4 + "Another line."), "repeated lines"),
        (text("One paragraph.\n\n" * 4 + "Another one."), "repeated paragraphs"),
        (text("of sea sand " * 2 + "the sea " * 40 + PROSE), "one run of 2 words again and again"),
        (
            text(PROSE + " And " + " ".join(PROSE.split()[5:35])),
            "repeated runs of 5 words",
        ),
    ],
    "boilerplate": [(text(PROSE + "\nSHARE\nLOG IN NOW\n3 likes\nSign-in here\n2024"), "boilerplate lines")],
    "language": [(text(GERMAN), "language de"), (pair(instruction=GERMAN), "language de")],
    "classifier": [(pair("bad " * 5), "low quality score")],
    "secrets": [
        (pair("key = 'AKIA2OGYBAH6QKVZ3RNP'"), "AWS access key"),
        (pair("git clone https://bob:hunter2xyz@github.com/bob/x"), "password in an address"),
        (pair("-----BEGIN RSA PRIVATE KEY-----\nMIIE"), "private key"),
        (pair("ghp_" + "a9Bz" * 9), "GitHub token"),
        (pair("token: github_pat_" + "a9Bz" * 18), "GitHub token"),
        (pair("psql postgres://bob:hunter2xyz@db.latest.acme.com/x"), "password in an address"),
        (pair("DB_HOST=db\nexport AWS_SECRET_ACCESS_KEY=q8Zk2LwPx7TnVb4RmYc9\n"), "random value of a secret's name"),
        (pair("api_key = 'q8Zk2LwPx7TnVb4RmYc9'"), "random value of a secret's name"),
        (pair(tests=["use('ghp_" + "a9Bz" * 9 + "')"]), "GitHub token in meta.tests"),
        (pair(**{"ghp_" + "a9Bz" * 9: 1}), "GitHub token in meta"),
    ],
    "personal": [
        (pair("Write to jane.doe@gmail.com."), "e-mail address"),
        (pair("jane.doe@gmail.com: she wrote it"), "e-mail address"),
        (pair("Call +49 30 9018 2746 now"), "telephone number"),
        (pair("connect('93.184.216.34')"), "public IP address"),
        (pair("card 4539 1488 0343 6467"), "card number"),
        (pair("iban DE89 3704 0044 0532 0130 00"), "IBAN"),
        (pair(seed={"by": ["jane.doe@gmail.com"]}), "e-mail address in meta.seed"),
        (pair(**{"jane.doe@gmail.com": "jane.doe@gmail.com"}), "e-mail address in meta"),
    ],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier that likes `good` and not `bad`."""
    from safetensors.numpy import save_file

    from xft.curate.classifier import features

    weights = np.zeros(1024, np.float32)
    weights[features("good good", 1024)] = 9
    weights[features("bad bad", 1024)] = -9
    folder = tmp_path_factory.mktemp("classifier")
    save_file({"weights": weights, "bias": np.zeros(1, np.float32)}, str(folder / "classifier.safetensors"))
    return str(folder)


def bound(name: str, model: str) -> BoundStep:
    options = {"model": model} if name == "classifier" else {}
    return build_steps([StepConfig(name=name, options=options)], "pairs")[0]


def names() -> list[str]:
    build_steps(None, "pairs")
    return sorted(STEPS)


@pytest.mark.parametrize("name", names())
def test_step_keeps_and_rejects_with_its_reason(name: str, model: str) -> None:
    step = bound(name, model)
    for record in KEPT[name]:
        assert step(record) is None, record
    for record, reason in REJECTED[name]:
        assert step(record) == reason, record


@pytest.mark.parametrize("name", names())
def test_step_is_pure_and_its_reasons_hold_nothing_of_the_record(name: str, model: str) -> None:
    step = bound(name, model)
    for record in [*KEPT[name], *(record for record, _ in REJECTED[name])]:
        before = copy.deepcopy(record)
        assert step(record) == step(record)
        assert record == before
    for record, reason in REJECTED[name]:
        assert step.step.private is (name in ("secrets", "personal"))
        assert record.response.strip() not in reason or not record.response.strip()


@pytest.mark.parametrize("name", ["secrets", "personal", "parse", "source-file"])
@pytest.mark.parametrize(
    "attack",
    ["class " + "a" * 400_000, "```" + "a" * 400_000, "```html\n" + "<!--<script" * 40_000, "```html\n" + "<" * 400_000,
     "```html\n" + "<div>" * 80_000,
     "a." * 200_000 + "://", "KEY" * 130_000 + "'", "eyJ-" * 100_000, "a@" + "test." * 80_000 + "9"],
    ids=lambda attack: attack[:14].strip(),
)  # fmt: skip
def test_no_text_takes_time_in_its_length_squared(name: str, attack: str, model: str) -> None:
    bound(name, model)(pair(attack))  # else this takes minutes


@pytest.mark.parametrize("name", names())
def test_step_survives_any_text(name: str, model: str) -> None:
    step = bound(name, model)
    odd = [
        "",
        " ",
        "\n" * 50,
        "\ud800",
        "\x00",
        "é" * 5000,
        "(" * 3000,
        "```",
        "```python\n",
        "a" * 100_000,
        "…" * 99,
        "1 " * 999,
    ]
    for response in odd:
        for record in (pair(response), pair(instruction=response), text(response), pair(response, language=7)):
            reason = step(record)
            assert reason is None or (isinstance(reason, str) and reason)


@pytest.mark.parametrize("name", names())
def test_step_says_what_it_does(name: str) -> None:
    assert STEPS[name].check.__doc__
    assert all(field.description for field in STEPS[name].options.model_fields.values())


@pytest.mark.parametrize("kind", sorted(DEFAULTS))
def test_defaults_exist(kind: str) -> None:
    assert [step.name for step in build_steps(None, kind)] == list(DEFAULTS[kind])


def test_unknown_step_and_option_are_named() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown step 'parze'.*did you mean 'parse'"):
        build_steps([StepConfig(name="parze")], "pairs")
    with pytest.raises(RecipeError, match="step length: top level: unknown key 'max'"):
        build_steps([StepConfig(name="length", options={"max": 3})], "pairs")


def test_classifier_that_is_not_there(tmp_path: Any) -> None:
    step = build_steps([StepConfig(name="classifier", options={"model": str(tmp_path / "x")})], "pairs")[0]
    with pytest.raises(DataError, match="no classifier"):
        step(pair())


def test_the_text_of_html() -> None:
    assert text_of_html("a<b>c</b><!-- d > --><SCRIPT x>e<f></script >g<style>h</style>i").split() == list("acgi")
    assert text_of_html("a<script>b<!-- c>d").split() == list("abd")  # what is never closed is a tag
    assert text_of_html("a < b").split() == ["a", "<", "b"]


def test_blocks() -> None:
    both = pair(f"Run\n```sh\nls\n```\nthen\n```py\n{PYTHON}```\nwhich gives\n```\n4\n```\n")
    assert [(block.language, block.code) for block in blocks_of(both)] == [("bash", "ls\n"), ("python", PYTHON)]
    assert [block.language for block in blocks_of(pair(PYTHON))] == ["python"]
    assert [block.language for block in blocks_of(pair(JAVA, language="Java"))] == ["java"]
    assert blocks_of(pair("Just words.")) == ()
    assert [block.code for block in blocks_of(pair("```python\nx = 1\n"))] == ["x = 1\n"]  # never closed


def test_parse_can_require_code() -> None:
    step = build_steps([StepConfig(name="parse", options={"require": True})], "pairs")[0]
    assert step(pair("just words")) == "no code to parse"
    assert step(pair()) is None
