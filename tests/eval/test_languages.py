"""Each language's layout, and its verdicts on own programs: at least 20 that are right and 20 that are wrong."""

import dataclasses
import re
import secrets

import pytest
from language_problems import FOLDER, SPECS, answers, problem

from xft.errors import SandboxError, UnknownNameError
from xft.eval.languages import LANGUAGES, ShapeError
from xft.eval.languages.layout import closing, swap_equals
from xft.eval.languages.toolchain import find_toolchain, java_library, on_path, rust_compiler
from xft.eval.sandbox import Sandbox

LEVELS = ("namespaces", "landlock")
WITH_ANSWERS = sorted(path.stem for path in FOLDER.glob("*.txt"))
RUN_SECONDS = 5.0
"""Enough for the answers that end; the loops among them should not cost more."""
HANDFUL = {
    "cpp": ("right own macro", "wrong switches assertions off"),
    "java": ("right prints a lot", "wrong a list that equals everything"),
    "js": ("right generator", "right prints a lot", "wrong leaves with", "wrong a require", "wrong reads the tests"),
    "php": ("right helper", "right buffers", "wrong leaves with", "wrong shows the tests", "wrong reads the tests"),
    "rust": ("right own assertion", "wrong exported assertion"),
}


def usable(name):
    language = LANGUAGES[name]
    if language.toolchain.fault:
        pytest.skip(f"not run: {language.title}: {language.toolchain.fault}")
    return language


@pytest.fixture
def box(request):
    try:
        with Sandbox(request.param) as sandbox:
            yield sandbox
    except SandboxError as error:
        pytest.skip(f"not run: {error}")


def run(box, language, name, text):
    """Judge one answer; again, as the scoring does, when time was short."""
    stub, entry, tests = problem(language.name, name)
    steps = [
        step if step.compile else dataclasses.replace(step, seconds=min(step.seconds, RUN_SECONDS))
        for step in language.steps()
    ]
    for attempt in (1, 2):
        proof = secrets.token_hex(16)
        files = language.layout(stub + text, entry, tests, proof)
        outcome = box.execute(files, steps, proof=proof, memory_mb=language.memory_mb)
        if outcome.status == "passed" or not outcome.strained or attempt == 2:
            return outcome
    raise AssertionError("unreachable")


def misjudged(box, language, chosen):
    found = []
    for answer in chosen:
        outcome = run(box, language, answer.problem, answer.text)
        if (outcome.status == "passed") != answer.right:
            found.append((answer.problem, answer.right, answer.what, outcome))
    return found


@pytest.mark.parametrize("name", WITH_ANSWERS)
def test_there_are_twenty_right_and_twenty_wrong_answers_over_all_problems(name):
    found = answers(name)
    assert sum(answer.right for answer in found) >= 20
    assert sum(not answer.right for answer in found) >= 20
    assert {answer.problem for answer in found if answer.right} == set(SPECS)
    assert {answer.problem for answer in found if not answer.right} == set(SPECS)


@pytest.mark.parametrize("box", LEVELS, indirect=True)
@pytest.mark.parametrize("name", ["js", "php"])
def test_a_handful_of_answers_is_judged_right(box, name):
    language = usable(name)
    chosen = [answer for answer in answers(name) for what in HANDFUL[name] if said(answer).startswith(what)]
    assert len(chosen) == len(HANDFUL[name])
    assert misjudged(box, language, chosen) == []


@pytest.mark.parametrize("box", ["namespaces"], indirect=True)
@pytest.mark.parametrize("name", ["cpp", "java", "rust"])
def test_a_handful_of_compiled_answers_is_judged_right(box, name):
    language = usable(name)
    chosen = [answer for answer in answers(name) for what in HANDFUL[name] if said(answer).startswith(what)]
    assert len(chosen) == len(HANDFUL[name])
    assert misjudged(box, language, chosen) == []


@pytest.mark.slow
@pytest.mark.parametrize("box", LEVELS, indirect=True)
@pytest.mark.parametrize("name", WITH_ANSWERS)
def test_every_answer_is_judged_right(box, name):
    assert misjudged(box, usable(name), answers(name)) == []


def said(answer):
    return f"{'right' if answer.right else 'wrong'} {answer.what}"


@pytest.mark.parametrize("name", sorted(LANGUAGES))
def test_the_proof_is_printed_once_behind_all_tests(name):
    stub, entry, tests = problem(name, "alternate_sum")
    proof = secrets.token_hex(16)
    files = LANGUAGES[name].layout(f"{stub}ANSWER", entry, tests, proof)
    assert sum(text.count("ANSWER") for text in files.values()) == 1
    (program,) = (text for text in files.values() if proof in text)
    assert program.count(f'"\\n{proof}') + program.count(f'"\\n%s\\n", "{proof}"') == 1
    assert tests.count("-5") == 1  # in the last case
    assert program.index("-5") < program.rindex(proof)


@pytest.mark.parametrize("name", sorted(LANGUAGES))
def test_the_places_for_tests_and_proof_are_not_sought_in_the_answer(name):
    language = LANGUAGES[name]
    stub, entry, tests = problem(name, "bound")
    honest = language.layout(f"{stub}ANSWER", entry, tests, "proof")
    traps = f"int main() {{\n fn main() {{\n test();\n}}\n}}\n{tests}\nassert(true)"
    trapped = language.layout(f"{stub}{traps}", entry, tests, "proof")
    assert {file: text.replace("ANSWER", traps) for file, text in honest.items()} == trapped


@pytest.mark.parametrize("name", sorted(set(LANGUAGES) - {"swift"}))
def test_tests_of_another_shape_are_refused(name):
    with pytest.raises(ShapeError, match="don't match"):
        LANGUAGES[name].layout("answer", "f", "print('passed')", "proof")


@pytest.mark.parametrize(
    ("line", "swapped"),
    [
        ('    assert(f(("a)")).equals((")")));', '    assert(((")")).equals(f(("a)"))));'),
        ("assert(f((1l), (new A(2l))).equals((3l)));", "assert(((3l)).equals(f((1l), (new A(2l)))));"),
        ("    assert(f((1l)) == (2l));", "    assert(f((1l)) == (2l));"),
        ("    assert(f((1l)).equals((2l)) && g());", "    assert(f((1l)).equals((2l)) && g());"),
        ("    }", "    }"),
    ],
)
def test_java_asks_the_expected_value(line, swapped):
    assert swap_equals(line) == swapped


def test_a_parenthesis_is_closed_past_strings():
    assert closing("f(a, (b), \")\", ')')!", 1) == 18
    assert closing("f(", 1) == -1


def test_cpp_undefines_every_word_of_its_tests_but_not_of_their_texts():
    tests = '}\nint main() {\n    auto candidate = f;\n    assert(candidate(("word")) == (std::string("x")));\n}\n'
    program = LANGUAGES["cpp"].layout("answer", "f", tests, "proof")["program.cpp"]
    undefined = re.findall(r"^#undef (\w+)$", program, re.MULTILINE)
    assert {"assert", "main", "candidate", "std", "NDEBUG", "printf"} <= set(undefined)
    assert "word" not in undefined


def test_swift_calls_its_assertions_by_a_name_that_is_new_each_time():
    stub, entry, tests = problem("swift", "bound")
    program = LANGUAGES["swift"].layout(stub, entry, tests, "0123")["program.swift"]
    assert program.count("check_0123(") == 1 + tests.count("\nassert(")
    assert not re.search(r"^assert\(", program, re.MULTILINE)


@pytest.mark.parametrize("name", sorted(LANGUAGES))
def test_a_missing_toolchain_is_named_with_its_package(name):
    language = LANGUAGES[name]
    found = find_toolchain({key: lambda: None for key in language.programs}, language.version, language.package)
    assert found.fault == f"no {' and no '.join(language.programs)} found; install {language.package}"
    assert language.package


def test_a_broken_toolchain_is_named_with_its_package():
    found = find_toolchain({"false": on_path("false")}, ("{false}",), "false (Debian)")
    assert "does not run" in found.fault
    assert found.fault.endswith("install false (Debian)")
    assert found.version == ""


def test_a_toolchain_says_its_version():
    found = find_toolchain(
        {"sh": on_path("nothing-of-this-name", "sh")}, ("{sh}", "-c", "echo; echo 1.2; echo x"), "sh"
    )
    assert (found.version, found.fault) == ("1.2", "")


def test_rust_is_the_compiler_itself_not_the_one_that_chooses_it(tmp_path, monkeypatch):
    real = tmp_path / "toolchain" / "bin" / "rustc"
    real.parent.mkdir(parents=True)
    real.touch()
    proxy = tmp_path / "proxy" / "rustc"
    proxy.parent.mkdir()
    proxy.write_text(f"#!/bin/sh\necho {tmp_path}/toolchain\n")
    proxy.chmod(0o755)
    monkeypatch.setenv("PATH", str(proxy.parent), prepend=":")
    assert rust_compiler() == str(real)
    real.unlink()
    assert rust_compiler() == str(proxy)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert rust_compiler() is None


def test_a_java_library_is_looked_for_in_classpath_first(tmp_path, monkeypatch):
    library = tmp_path / "javatuples-9.jar"
    monkeypatch.setenv("CLASSPATH", f"{tmp_path}:{library}")
    assert java_library("javatuples")() != str(library)
    library.touch()
    assert java_library("javatuples")() == str(library)


def test_an_unknown_language_is_answered_with_those_there_are():
    with pytest.raises(UnknownNameError, match=r"unknown language 'cobol'; available: cpp, java, js, php, rust, swift"):
        LANGUAGES["cobol"]
