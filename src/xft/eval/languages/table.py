"""LANGUAGES: the languages; the benchmark `multipl-e-NAME` of each follows from its entry.

To add one, register it here, with a pure function in `layout.py` and one in `answers.py`. Time limits are MultiPL-E's
own where a program runs (5 or 15 s), and at least its own where it is compiled.
"""

from __future__ import annotations

from xft.eval.languages import answers, layout
from xft.eval.languages.language import Command, Known, Language
from xft.eval.languages.toolchain import java_library, on_path, rust_compiler
from xft.registry import Registry

LANGUAGES: Registry[Language] = Registry("language")

MEMORY_MB = 2048
JVM = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-Xmx1024m")
"""One thread that collects and a compiler that compiles once: a quick start where cores are few."""

NAME_AND_PARENTHESIS = r"(\w+)\s*\("
PARAMETERS_AND_BODY = r"\s*\([^;{}()]*(?:\([^;{}()]*\)[^;{}()]*)*\)[^;{}()]{0,200}\{"
"""The brace tells a definition from prose that names the function."""
TYPES_AND_BODY = r"\s*[<(][^{}]{0,1000}\{"
"""The same where types hold parentheses and semicolons, too."""


def remove(*names: str) -> Command:
    """Remove sources, which hold the proof, before the program runs."""
    return Command(argv=("rm", "-f", *names), seconds=10.0, compile=True)


LANGUAGES.register("cpp")(
    Language(
        name="cpp",
        title="C++",
        fence="cpp",
        data="cpp",
        package="g++ (Debian, Ubuntu)",
        programs={"cxx": on_path("g++")},
        version=("{cxx}", "--version"),
        commands=(
            Command(argv=("{cxx}", "-std=c++17", "program.cpp", "-o", "program"), seconds=60.0, compile=True),
            remove("program.cpp", "answer.cpp"),
            Command(argv=("./program",), seconds=15.0),
        ),
        memory_mb=MEMORY_MB,
        signature=NAME_AND_PARENTHESIS,
        definition=r"\bNAME" + PARAMETERS_AND_BODY,
        closed_by_tests=True,
        layout=layout.cpp,
        join=answers.cpp,
        known=Known(
            stub="#include<assert.h>\n#include<bits/stdc++.h>\n// Add one to each.\n"
            "std::vector<long> add_one(std::vector<long> values) {\n",
            tests="}\nint main() {\n    auto candidate = add_one;\n"
            "    assert(candidate((std::vector<long>({(long)1}))) == (std::vector<long>({(long)2})));\n}\n",
            good="    for (auto &value : values) value++;\n    return values;",
            bad="    return values;",
        ),
    )
)
LANGUAGES.register("java")(
    Language(
        name="java",
        title="Java",
        fence="java",
        data="java",
        package="default-jdk-headless and libjavatuples-java (Debian, Ubuntu)",
        programs={"javac": on_path("javac"), "java": on_path("java"), "javatuples": java_library("javatuples")},
        version=("{javac}", "-version"),
        commands=(
            Command(
                argv=(
                    *("{javac}", *(f"-J{option}" for option in JVM), "-encoding", "UTF8", "-nowarn", "-proc:none"),
                    *("-cp", "{javatuples}", "-d", ".", "Problem.java"),
                ),
                seconds=60.0,
                compile=True,
            ),
            remove("Problem.java"),
            Command(argv=("{java}", *JVM, "-ea", "-cp", ".:{javatuples}", "Problem"), seconds=15.0),
        ),
        memory_mb=MEMORY_MB,
        signature=NAME_AND_PARENTHESIS,
        definition=r"\bNAME" + PARAMETERS_AND_BODY,
        closed_by_tests=True,
        layout=layout.java,
        join=answers.java,
        known=Known(
            stub="import java.util.*;\nimport org.javatuples.*;\nclass Problem {\n    // Swap the two.\n"
            "    public static Pair<Long, Long> swap(Pair<Long, Long> pair) {\n",
            tests="    }\n    public static void main(String[] args) {\n"
            "    assert(swap((Pair.with(1l, 2l))).equals((Pair.with(2l, 1l))));\n    }\n\n}\n",
            good="        return Pair.with(pair.getValue1(), pair.getValue0());",
            bad="        return pair;",
        ),
    )
)
LANGUAGES.register("js")(
    Language(
        name="js",
        title="JavaScript",
        fence="javascript",
        data="js",
        package="nodejs (Debian, Ubuntu)",
        programs={"node": on_path("node", "nodejs")},
        version=("{node}", "--version"),
        commands=(Command(argv=("{node}", "program.js"), seconds=5.0),),
        memory_mb=MEMORY_MB,
        signature=NAME_AND_PARENTHESIS,
        definition=rf"\bfunction[\s*]+NAME{PARAMETERS_AND_BODY}|\b(?:const|let|var)\s+NAME\s*=",
        closed_by_tests=False,
        layout=layout.javascript,
        join=answers.javascript,
        known=Known(
            stub="// Add one to each.\nfunction add_one(values){\n",
            tests="const assert = require('node:assert');\n\n\nfunction test() {\n  let candidate = add_one;\n"
            "  assert.deepEqual(candidate([1]),[2]);\n}\n\ntest();",
            good="  return values.map((value) => value + 1);\n}\n",
            bad="  return values;\n}\n",
        ),
    )
)
LANGUAGES.register("php")(
    Language(
        name="php",
        title="PHP",
        fence="php",
        data="php",
        package="php-cli (Debian, Ubuntu)",
        programs={"php": on_path("php")},
        version=("{php}", "--version"),
        commands=(
            Command(
                argv=(
                    *("{php}", "-d", "display_errors=stderr", "-d", "html_errors=0", "-d", "log_errors=0"),
                    *("-d", "memory_limit=-1", "program.php"),
                ),
                seconds=15.0,
            ),
        ),
        memory_mb=MEMORY_MB,
        signature=NAME_AND_PARENTHESIS,
        definition=r"\bfunction[\s&]+NAME" + PARAMETERS_AND_BODY,
        closed_by_tests=False,
        layout=layout.php,
        join=answers.php,
        known=Known(
            stub="<?php\n// Add one to each.\nfunction add_one($values) {\n",
            tests="function candidate(...$args) {\n    return add_one(...$args);\n}\n\nfunction test(): void {\n"
            '    if (candidate(array(1)) !== array(2)) { throw new Exception("Test failed!"); }\n}\n\ntest();',
            good="    return array_map(fn($value) => $value + 1, $values);\n}\n",
            bad="    return $values;\n}\n",
        ),
    )
)
LANGUAGES.register("rust")(
    Language(
        name="rust",
        title="Rust",
        fence="rust",
        data="rs",
        package="rustc (Debian, Ubuntu; or rustup.rs), and gcc to link",
        programs={"rustc": rust_compiler, "cc": on_path("cc")},
        version=("{rustc}", "--version"),
        commands=(
            Command(argv=("{rustc}", "-Clinker={cc}", "program.rs", "-o", "program"), seconds=60.0, compile=True),
            remove("program.rs"),
            Command(argv=("./program",), seconds=5.0),
        ),
        memory_mb=MEMORY_MB,
        signature=r"\bfn (\w+)",
        definition=r"\bfn\s+NAME" + TYPES_AND_BODY,
        closed_by_tests=True,
        layout=layout.rust,
        join=answers.rust,
        known=Known(
            stub="/// Add one to each.\nfn add_one(values: Vec<isize>) -> Vec<isize> {\n",
            tests="}\n\nfn main() {\n    let candidate = add_one;\n    assert_eq!(candidate(vec![1]), vec![2]);\n}\n",
            good="    values.iter().map(|value| value + 1).collect()",
            bad="    values",
        ),
    )
)
LANGUAGES.register("swift")(
    Language(
        name="swift",
        title="Swift",
        fence="swift",
        data="swift",
        package="swiftlang (Debian 13 and later), or the toolchain from swift.org",
        programs={"swiftc": on_path("swiftc")},
        version=("{swiftc}", "--version"),
        commands=(
            Command(
                argv=("{swiftc}", "-module-cache-path", "modules", "program.swift", "-o", "program", "-lm"),
                seconds=120.0,
                compile=True,
            ),
            remove("program.swift"),
            Command(argv=("./program",), seconds=5.0),
        ),
        memory_mb=MEMORY_MB,
        signature=r"\bfunc (\w+)",
        definition=r"\bfunc\s+NAME" + TYPES_AND_BODY,
        closed_by_tests=True,
        layout=layout.swift,
        join=answers.swift,
        known=Known(
            stub="\n/// Add one to each.\nfunc add_one(values: [Int]) -> [Int] {\n",
            tests="}\n\n\nassert(add_one(values: [1]) == [2])",
            good="    return values.map { $0 + 1 }",
            bad="    return values",
        ),
    )
)
