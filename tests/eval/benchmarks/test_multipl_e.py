"""MultiPL-E: its data, its prompts, how answers become programs, and what it says of a language that can't be used."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from language_problems import FOLDER, SPECS, problem

from xft.errors import DataError, FetchError, SandboxError, UnknownNameError
from xft.eval import data as eval_data
from xft.eval.benchmark import Problem
from xft.eval.benchmarks import BENCHMARKS
from xft.eval.benchmarks.multipl_e import HUB_NAME, Suite
from xft.eval.languages import LANGUAGES, Toolchain, from_chat, from_continuation
from xft.eval.sandbox import Outcome, Sandbox

NAMES = sorted(LANGUAGES)


def row(language, name):
    stub, _, tests = problem(language, name)
    return {
        "name": f"Own_{name}",
        "language": LANGUAGES[language].data,
        "prompt": stub,
        "doctests": "transform",
        "original": "",
        "prompt_terminology": "reworded",
        "tests": tests,
        "stop_tokens": ["\n}", "\nSTOP"],
    }


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder with all own problems, in every language."""
    (tmp_path / "multipl_e").mkdir()
    for language in NAMES:
        lines = [json.dumps(row(language, name)) for name in SPECS]
        (tmp_path / "multipl_e" / f"humaneval-{LANGUAGES[language].data}.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("XFT_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_hub(monkeypatch):
    def refuse(name, **options):
        raise FetchError(f"{name}: no network")

    monkeypatch.setattr(eval_data, "fetch_snapshot", refuse)


class Recorder:
    """A sandbox that runs nothing: it remembers what it was given, and says what it is told to say."""

    def __init__(self, *statuses):
        self.statuses = list(statuses)
        self.given = []

    def execute(self, files, steps, *, proof, memory_mb):
        self.given.append((files, steps, proof, memory_mb))
        return Outcome(status=self.statuses.pop(0), seconds=0.5, error="so it was", strained=False)


def test_there_is_a_benchmark_for_each_language():
    assert {
        "multipl-e-java",
        "multipl-e-js",
        "multipl-e-cpp",
        "multipl-e-php",
        "multipl-e-swift",
        "multipl-e-rust",
    } == {name for name in BENCHMARKS if name.startswith("multipl-e")}


@pytest.mark.parametrize("name", NAMES)
def test_problems_are_read_as_the_benchmark_has_them(data, name):
    benchmark = BENCHMARKS[f"multipl-e-{name}"]
    found = benchmark.problems()
    assert [one.task_id for one in found] == [f"Own_{spec}" for spec in SPECS]
    for one, spec in zip(found, SPECS, strict=True):
        assert (one.stub, one.entry_point, one.tests.text) == problem(name, spec)
        assert one.tests.stops == ("\n}", "\nSTOP")
        assert one.tool == name
        assert one.canonical == ""


def test_the_folder_may_hold_the_file_itself_or_the_hubs_parquet(data, tmp_path, no_hub, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet", reason="not run: pyarrow")
    import pyarrow

    benchmark = BENCHMARKS["multipl-e-rust"]
    digest, found = benchmark.data_hash(), list(benchmark.problems())
    file = data / "multipl_e" / "humaneval-rs.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.rename(data / "humaneval-rs.jsonl")
    assert (benchmark.data_hash(), list(benchmark.problems())) == (digest, found)
    (data / "humaneval-rs.jsonl").unlink()
    (data / "humaneval-rs").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), data / "humaneval-rs" / "test-00000-of-00001.parquet")
    assert (benchmark.data_hash(), list(benchmark.problems())) == (digest, found)
    monkeypatch.delenv("XFT_DATA")
    asked = []
    monkeypatch.setattr(eval_data, "fetch_snapshot", lambda name, **options: asked.append((name, options)) or data)
    assert (benchmark.data_hash(), list(benchmark.problems())) == (digest, found)
    assert asked[0][0] == HUB_NAME


def test_missing_data_name_both_ways_to_get_them(tmp_path, no_hub, monkeypatch):
    benchmark = BENCHMARKS["multipl-e-java"]
    monkeypatch.setenv("XFT_DATA", str(tmp_path))
    with pytest.raises(
        DataError, match=r"multipl-e-java: .*multipl_e/humaneval-java\.jsonl.*XFT_DATA.*nuprl/MultiPL-E"
    ):
        benchmark.problems()
    monkeypatch.delenv("XFT_DATA")
    with pytest.raises(DataError, match=r"multipl-e-java: .*XFT_DATA.*nuprl/MultiPL-E"):
        benchmark.problems()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tests": "print('passed')"}, "the tests don't match"),
        ({"tests": None}, "the tests don't match"),
        ({"prompt": "// nothing to complete\n"}, "does not end with a function's first line"),
        ({"stop_tokens": None}, "not iterable"),
        ({"name": ...}, "KeyError"),
    ],
    ids=["tests", "no tests", "prompt", "stops", "name"],
)
def test_a_row_of_another_shape_is_named(data, change, message):
    rows = [
        row("rust", "bound"),
        {key: value for key, value in {**row("rust", "squeeze"), **change}.items() if value != ...},
    ]
    (data / "multipl_e" / "humaneval-rs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"humaneval-rs\.jsonl: row 2 is not a MultiPL-E problem in Rust") as caught:
        BENCHMARKS["multipl-e-rust"].problems()
    assert message in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_base_model_continues_the_prompt_up_to_the_problems_stops(data, name):
    benchmark = BENCHMARKS[f"multipl-e-{name}"]
    one = benchmark.problems()[0]
    request = benchmark.request(one, "completion")
    assert (request.instruction, request.prefix) == (None, one.stub)
    assert set(one.tests.stops) < set(request.stop)
    assert benchmark.extract(one, "  right\n}\nmore", "completion") == f"{one.stub}  right"
    assert benchmark.extract(one, "  right\nSTOP\n}", "completion") == f"{one.stub}  right"
    assert benchmark.extract(one, "  right\n", "completion") == f"{one.stub}  right\n"
    assert benchmark.extract(one, "\n}\nmore", "completion") == ""
    assert benchmark.extract(one, " \n", "completion") == ""
    assert benchmark.assemble(one, "  right\n}\nmore") == f"{one.stub}  right\n}}\nmore"


@pytest.mark.parametrize("name", NAMES)
def test_other_models_are_asked_for_the_function_in_an_opened_fence(data, name):
    benchmark = BENCHMARKS[f"multipl-e-{name}"]
    one = benchmark.problems()[0]
    for style in ("chat", "magicoder"):
        request = benchmark.request(one, style)
        assert f"{LANGUAGES[name].title} function" in request.instruction
        assert f"```{LANGUAGES[name].fence}\n{one.stub.strip()}\n```" in request.instruction.replace("\n\n//", "\n//")
        assert request.prefix == f"```{LANGUAGES[name].fence}\n"
        assert request.stop == ("\n```\n",)
        assert one.tests.text not in request.instruction
    with pytest.raises(UnknownNameError, match="prompt style 'poem'"):
        benchmark.request(one, "poem")


CPP = "#include<assert.h>\n#include<bits/stdc++.h>\nunion Either {\n    long f0;\n};\n"
JAVA = "import java.util.*;\n"
RUST = "use std::collections::HashMap;\n"
STUBS = {
    "cpp": f"{CPP}// Add one.\nlong up(long n) {{\n",
    "java": "import java.util.*;\nclass Problem {\n    // Add one.\n    public static long up(long n) {\n",
    "js": "//Add one.\nfunction up(n){\n",
    "php": "<?php\n// Add one.\nfunction up($n) {\n",
    "rust": "use std::collections::HashMap;\n\n/// Add one.\nfn up(n: isize) -> isize {\n",
    "swift": "\nextension Int: Error {}\n        \n/// Add one.\nfunc up(n: Int) -> Int {\n",
}
CHAT = [
    (
        "cpp",
        "the function, a main and an include of its own",
        "#include <iostream>\nlong up(long n) {\n    return n + 1;\n}\nint main() { std::cout << up(1); }\n",
        f"{CPP}#include <iostream>\n"
        "long up(long n) {\n    return n + 1;\n}\nint answer_main() { std::cout << up(1); }\nnamespace {",
    ),
    (
        "cpp",
        "the prompt again",
        f"{STUBS['cpp']}    return n + 1;\n}}\n```\nSo it goes.",
        f"#include<assert.h>\n#include<bits/stdc++.h>\n{STUBS['cpp']}    return n + 1;\n}}\nnamespace {{",
    ),
    (
        "cpp",
        "the body",
        "    if (n) {\n        return n + 1;\n    }\n    return 1; // }\n}\n",
        f"{STUBS['cpp']}    if (n) {{\n        return n + 1;\n    }}\n    return 1; // }}\n",
    ),
    (
        "java",
        "the method",
        "public static long up(long n) {\n    return n + 1;\n}\n```",
        f"{JAVA}class Problem {{\npublic static long up(long n) {{\n    return n + 1;\n}}\n    static {{",
    ),
    (
        "java",
        "the method, with imports and helpers",
        "import java.math.*;\n\nstatic long one() { return 1; }\npublic static long up(long n) { return n + one(); }\n",
        f"{JAVA}import java.math.*;\nclass Problem {{\nstatic long one() {{ return 1; }}\n"
        "public static long up(long n) { return n + one(); }\n    static {",
    ),
    (
        "java",
        "a class around it",
        "package a.b;\nimport java.util.*;\npublic class Solution {\n    static class Node { }\n"
        "    public static long up(long n) { return n + 1; }\n    public static void main(String[] args) { }\n}\n",
        f"{JAVA}class Solution {{\n    static class Node {{ }}\n    public static long up(long n) {{ return n + 1; }}\n"
        "    public static void answerMain(String[] args) { }\n}\nclass Problem extends Solution {\n    static {",
    ),
    (
        "java",
        "the prompt again",
        f"{STUBS['java']}        return n + 1;\n    }}\n}}\n",
        f"{STUBS['java'].replace('Problem', 'Answer')}        return n + 1;\n    }}\n}}\n"
        "class Problem extends Answer {\n    static {",
    ),
    ("java", "the body", "        return n + 1;\n    }\n}\n", f"{STUBS['java']}        return n + 1;\n"),
    ("js", "the function", "function up(n) {\n  return n + 1;\n}\n", "function up(n) {\n  return n + 1;\n}\n"),
    ("js", "an arrow", "Sure:\n```js\nconst up = (n) => n + 1;\n```", "const up = (n) => n + 1;\n"),
    ("js", "the body", "  return n + 1;\n}\nup(1);", f"{STUBS['js']}  return n + 1;\n}}\n"),
    ("js", "the body without its end", "  return n + 1;\n", f"{STUBS['js']}  return n + 1;\n}}\n"),
    (
        "php",
        "the function",
        "function up($n) {\n  return $n + 1;\n}\n",
        "<?php\nfunction up($n) {\n  return $n + 1;\n}\n",
    ),
    (
        "php",
        "the file",
        "\n<?php\nfunction up($n) { return $n + 1; }\n?>\n",
        "<?php\nfunction up($n) { return $n + 1; }\n?>\n",
    ),
    ("php", "the body", "  return $n + 1;\n}", f"{STUBS['php']}  return $n + 1;\n}}\n"),
    (
        "rust",
        "the function and a main",
        "fn up(n: isize) -> isize {\n    n + 1\n}\n\nfn main() {\n    up(1);\n}\n",
        f"{RUST}fn up(n: isize) -> isize {{\n    n + 1\n}}\n\nfn answer_main() {{\n    up(1);\n}}\nmod answer_end {{",
    ),
    (
        "rust",
        "the function and the imports",
        "use std::collections::{HashMap, HashSet};\npub fn up(n: isize) -> isize { n + 1 }\n",
        "use std::collections::{HashMap, HashSet};\npub fn up(n: isize) -> isize { n + 1 }\nmod answer_end {",
    ),
    ("rust", "the body", "    n + 1\n}", f"{STUBS['rust']}    n + 1\n"),
    (
        "swift",
        "the function",
        "func up(n: Int) -> Int {\n    return n + 1\n}\n",
        "extension Int: Error {}\nfunc up(n: Int) -> Int {\n    return n + 1\n}\ndo {",
    ),
    (
        "swift",
        "the prompt again",
        f"{STUBS['swift']}    return n + 1\n}}\n",
        f"{STUBS['swift'].strip()}\n    return n + 1\n}}\ndo {{",
    ),
]


@pytest.mark.parametrize(("name", "what", "text", "program"), CHAT, ids=[f"{case[0]}: {case[1]}" for case in CHAT])
def test_an_answer_becomes_a_program(name, what, text, program):
    language = LANGUAGES[name]
    wrappings = (
        [text] if "```" in text else [text, f"```{language.fence}\n{text}```\n", f"Here is up(n):\n\n~~~\n{text}"]
    )
    for wrapped in wrappings:
        found = from_chat(language, STUBS[name], "up", wrapped)
        assert found.strip("\n") == program.strip("\n")


PROSE = [
    "The function up(n) returns n + 1.",
    "`fn up` and `func up(n)` add one; up(n) is `function up(n)`.",
    "up(0);\n</think>\nSo:",
]


@pytest.mark.parametrize("prose", PROSE)
@pytest.mark.parametrize(("name", "what", "text", "program"), CHAT, ids=[f"{case[0]}: {case[1]}" for case in CHAT])
def test_talk_that_names_the_function_is_no_program(name, what, text, program, prose):
    code = text.partition("```js\n")[2] or text.partition("```")[0]
    found = from_chat(LANGUAGES[name], STUBS[name], "up", f"{prose}\n\n```{LANGUAGES[name].fence}\n{code}\n```")
    assert found.rstrip() == program.rstrip() or found.split() == program.split()


def test_a_body_is_told_from_the_talk_around_it():
    for text in (
        "return n + 1;\n```\nCall\n```js\nup(1)",
        "Its body:\n```js\nreturn n + 1;\n```",
        "Rust\n```rust\nn + 1\n",
    ):
        name = "rust" if "rust" in text else "js"
        assert "n + 1" in from_chat(LANGUAGES[name], STUBS[name], "up", text)


DECLARED = {
    "cpp": "std::vector<long> up(std::function<long(long)> f, long n) {",
    "java": "public static List<Long> up(Map<Long, Long> m) throws Exception {",
    "js": "async function* up(n, f = () => 1) {",
    "php": "function &up(?array $n = array(), int ...$m): ?array\n{",
    "rust": "pub fn up<T: Fn(isize) -> isize>(f: T, n: [isize; 2]) -> Result<(), String> {",
    "swift": "func up<T>(f: (Int) -> Int, n: (Int, Int)) throws -> [T] where T: Equatable {",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_definition_is_found_whatever_its_types(name):
    pattern = LANGUAGES[name].definition.replace("NAME", "up")
    assert re.search(pattern, DECLARED[name])
    assert not any(re.search(pattern, prose) for prose in PROSE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["", " \n\n", "```\n```\n"])
def test_nothing_is_found_in_nothing(name, text):
    assert from_chat(LANGUAGES[name], STUBS[name], "up", text) == ""
    assert from_continuation(STUBS[name], text if "`" not in text else "", ["\n}"]) == ""


def test_huge_answers_are_read_in_linear_time():
    for name in NAMES:
        for text in (
            "up(" * 75_000,
            "{" * 250_000,
            "'" * 250_000,
            "/*" * 125_000,
            "```\n" * 50_000,
            "import a" * 25_000,
        ):
            from_chat(LANGUAGES[name], STUBS[name], "up", text)


@pytest.mark.parametrize("name", NAMES)
def test_a_judgement_runs_the_languages_commands_with_a_new_proof_each_time(data, name, monkeypatch):
    benchmark, language = BENCHMARKS[f"multipl-e-{name}"], LANGUAGES[name]
    monkeypatch.setitem(
        vars(language), "toolchain", Toolchain(programs={key: f"/bin/{key}" for key in language.programs})
    )
    box = Recorder("passed", "exited")
    one = benchmark.problems()[0]
    judgements = [benchmark.judge(one, f"{one.stub}ANSWER", box) for _ in range(2)]
    assert [judgement.status for judgement in judgements] == ["passed", "exited"]
    assert all(judgement.in_process for judgement in judgements)
    (files, steps, proof, memory_mb), (_, _, second, _) = box.given
    assert len(proof) == 32 and proof != second
    assert files == language.layout(f"{one.stub}ANSWER", one.entry_point, one.tests.text, proof)
    assert memory_mb == benchmark.limits["memory_mb"]
    assert [step.compile for step in steps] == [True] * (len(steps) - 1) + [False]
    assert steps[-1].seconds == benchmark.limits["run_seconds"]
    assert not any("{" in part for step in steps for part in step.argv)


def test_no_program_fails_without_being_run(data):
    benchmark = BENCHMARKS["multipl-e-js"]
    assert benchmark.judge(benchmark.problems()[0], " \n", Recorder()).status == "failed"


@pytest.mark.parametrize(
    ("statuses", "fault"),
    [
        (["passed", "failed"], ""),
        (["failed", "failed"], "JavaScript: a right program failed (so it was); check the installation of nodejs"),
        (["passed", "passed"], "JavaScript: a wrong program passed; check the installation of nodejs"),
    ],
)
def test_a_language_proves_itself_before_it_is_scored(statuses, fault, monkeypatch):
    monkeypatch.setitem(vars(LANGUAGES["js"]), "toolchain", Toolchain(programs={"node": "/bin/node"}, version="v1"))
    (tool,) = BENCHMARKS["multipl-e-js"].tools(Recorder(*statuses))
    assert (tool.name, tool.version) == ("js", "v1")
    assert tool.fault.startswith(fault) and bool(tool.fault) == bool(fault)


def test_a_missing_language_is_not_run_and_names_what_to_install(monkeypatch):
    monkeypatch.setitem(vars(LANGUAGES["swift"]), "toolchain", Toolchain(fault="no swiftc found; install Swift"))
    (tool,) = BENCHMARKS["multipl-e-swift"].tools(Recorder())
    assert tool.fault == "Swift: no swiftc found; install Swift"


@pytest.fixture(scope="module")
def box():
    try:
        with Sandbox() as sandbox:
            yield sandbox
    except SandboxError as error:
        pytest.skip(f"not run: {error}")


def usable(name, box):
    (tool,) = BENCHMARKS[f"multipl-e-{name}"].tools(box)
    if tool.fault:
        pytest.skip(f"not run: {tool.fault}")


@pytest.mark.parametrize(
    "name", ["js", "php", "rust", *(pytest.param(one, marks=pytest.mark.slow) for one in ("cpp", "java", "swift"))]
)
def test_the_languages_here_prove_themselves(box, name):
    usable(name, box)


def forms(name):
    """Answers to the problem `bound`, whole and in part; {stub} stands for the prompt."""
    text = (FOLDER / "forms" / f"{name}.txt").read_text()
    return [part.lstrip("\n") for part in text.split("====")]


def judged(name, box, text):
    benchmark = BENCHMARKS[f"multipl-e-{name}"]
    stub, entry, tests = problem(name, "bound")
    one = Problem(task_id="own", stub=stub, entry_point=entry, tests=Suite(text=tests, stops=("\n}",)), tool=name)
    code = benchmark.extract(one, text.replace("{stub}", stub), "chat")
    verdict = benchmark.judge(one, code, box)
    return benchmark.judge(one, code, box) if verdict.strained else verdict


@pytest.mark.parametrize(
    "name", ["js", "php", *(pytest.param(one, marks=pytest.mark.slow) for one in ("cpp", "java", "rust", "swift"))]
)
def test_answers_are_judged_right_in_every_form_that_models_write(box, name):
    usable(name, box)
    for number, form in enumerate(forms(name)):
        fenced = f"Here it is:\n\n```{LANGUAGES[name].fence}\n{form}```\nIt keeps x in range."
        wrapped = form if number % 2 else fenced
        verdict = judged(name, box, wrapped)
        assert verdict.status == "passed", (form, verdict)
        assert judged(name, box, re.sub(r"max(?=\()", "min", wrapped)).status != "passed", form


def test_real_problems_have_the_shape_that_own_ones_have():
    """What the benchmark puts before and behind a function is what ours put there."""
    if not os.environ.get("XFT_DATA"):
        pytest.skip("not run: MultiPL-E: XFT_DATA names no folder")
    counts = {"cpp": 161, "java": 158, "js": 161, "php": 161, "rust": 156, "swift": 158}
    for name, count in counts.items():
        try:
            found = BENCHMARKS[f"multipl-e-{name}"].problems()
        except DataError as error:
            pytest.skip(f"not run: {error}")
        assert len(found) == count
        stub, _, tests = problem(name, "bound")
        for one in found:
            assert one.stub.split("\n")[0].split(" ")[0][:2] in (stub.split("\n")[0][:2], "us", "")
            assert one.tests.text[:12] == tests[:12]
            assert one.tests.text.rstrip()[-1] == tests.rstrip()[-1]
