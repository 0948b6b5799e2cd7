"""What may import what: help and the light modules stay free of torch."""

from __future__ import annotations

import ast
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import xft

SOURCE = Path(xft.__file__).parent
HEAVY = {
    "torch", "transformers", "accelerate", "tokenizers", "gguf", "pyarrow", "huggingface_hub", "rensa", "tree_sitter",
    "py3langid", "datatrove",
}  # fmt: skip
TRAINING = {
    "moe", "checkpoint", "dequantise", "upcycle", "prove", "tune", "merge", "device", "cost", "pipeline",
    "export", "export_adapters", "eval.generate", "eval.heldout", "experiment.execute",
}  # fmt: skip
"""Modules and packages that compute with tensors; every other one is free of them at module level."""
COMMANDS = (
    *("run", "experiment", "upcycle", "prove", "tune", "merge", "export", "soup", "report"),
    *("eval", "eval score", "eval compare", "doctor", "synth"),
    *("curate", "curate classifier"),
)


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_help_imports_nothing_heavy() -> None:
    printed = _python(
        "import json, sys\n"
        "from xft.cli import main\n"
        f"for command in {['', *COMMANDS]!r}:\n"
        "    sys.argv = ['xft', *command.split(), '--help']\n"
        "    try:\n        main()\n"
        "    except SystemExit as stop:\n        assert stop.code == 0, (command, stop.code)\n"
        "    print(json.dumps([command, sorted({name.split('.')[0] for name in sys.modules})]))"
    )
    assert printed.count("Usage: ") == 1 + len(COMMANDS)
    said = dict(json.loads(line) for line in printed.splitlines() if line.startswith("["))
    assert {command: HEAVY.intersection(modules) for command, modules in said.items()} == {
        command: set() for command in ("", *COMMANDS)
    }


def test_help_is_there_at_once() -> None:
    def seconds() -> float:  # of a processor, however busy the machine is
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = seconds()
    assert "Usage: " in _python("import sys; sys.argv = ['xft', '--help']; from xft.cli import main; main()")
    assert seconds() - before < 2.0


def test_every_command_has_a_help_test() -> None:
    from typer.main import get_command

    from xft.cli import app

    assert sorted(get_command(app).commands) == sorted(COMMANDS)  # type: ignore[attr-defined]


def test_importing_xft_loads_neither_torch_nor_transformers() -> None:
    assert _python("import xft, sys; print('torch' in sys.modules, 'transformers' in sys.modules)") == "False False\n"


def test_report_and_scoring_run_without_torch() -> None:
    modules = "xft.report, xft.eval.score, xft.eval.sandbox, xft.eval.benchmarks, xft.eval.compare, xft.doctor"
    modules += ", xft.eval.generate, xft.base, xft.cli, xft.synth.synth"
    assert _python(f"import {modules}, sys; print('torch' in sys.modules)") == "False\n"


@pytest.mark.parametrize("name", ["recipe", "registry", "errors"])
def test_schema_registry_and_errors_import_nothing_of_xft_but_errors(name: str) -> None:
    loaded = json.loads(
        _python(f"import json, sys, xft.{name}; print(json.dumps([m for m in sys.modules if m.startswith('xft.')]))")
    )
    assert set(loaded) <= {"xft.errors", "xft.registry", "xft.families", f"xft.{name}"}
    allowed = {"recipe": {"yaml", "pydantic", "xft"}, "registry": {"xft"}, "errors": set[str]()}[name]
    assert _imported(SOURCE / f"{name}.py") - sys.stdlib_module_names <= allowed


def _imported(path: Path) -> set[str]:
    """Return the top packages that a file imports when it is imported; functions and TYPE_CHECKING blocks are not."""
    found: set[str] = set()
    pending: list[ast.stmt] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.If):
            guarded = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            main = isinstance(node.test, ast.Compare) and "__main__" in ast.dump(node.test)
            pending += node.orelse if guarded or main else node.body + node.orelse
        elif isinstance(node, ast.Try):
            pending += node.body + node.orelse + node.finalbody
        elif isinstance(node, ast.ClassDef | ast.With):
            pending += node.body
    return found


def test_only_training_modules_import_torch() -> None:
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        training = any(module == name or module.startswith(name + ".") for name in TRAINING)
        own = {"datatrove"} if module == "curate.datatrove" else set()
        if not training and _imported(path) & HEAVY - own:
            wrong.append(module)
    assert wrong == []
