"""MultiPL-E (Cassano et al., 2022): HumanEval translated into other languages, one benchmark for each.

The data come from the folder XFT_DATA when that has them, else from the hub. Their licence forbids to train on them:
xft reads them to score, and for nothing else.

The benchmark puts its tests into the candidate's own process. A program passes when it prints a fresh random word after
its last test; what an answer that is made to cheat can still do is in docs/evaluation.md.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xft.errors import DataError
from xft.eval.benchmark import BENCHMARKS, Judgement, Problem, Request, Tool
from xft.eval.data import Rows, find_data, read_rows
from xft.eval.functions import END_STOPS, FENCE_STOP, judgement
from xft.eval.languages import LANGUAGES, Language, ShapeError, from_chat, from_continuation
from xft.eval.sandbox import Outcome, Sandbox
from xft.prompts import PROMPTS

HUB_NAME = "nuprl/MultiPL-E"
FOLDER = "multipl_e"
INSTRUCTION = "Write a solution to the following problem, as one whole {title} function:\n```{fence}\n{stub}\n```"


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """What a problem has beside its stub."""

    text: str
    stops: tuple[str, ...]
    """Where a continuation of the stub ends."""


class MultiplE:
    """The benchmark in one language."""

    def __init__(self, language: Language) -> None:
        self.language = language
        self.name = f"multipl-e-{language.name}"
        compiling = [command.seconds for command in language.commands if command.compile]
        self.limits: Mapping[str, Any] = {
            "compile_seconds": max(compiling, default=0.0),
            "run_seconds": language.commands[-1].seconds,
            "memory_mb": language.memory_mb,
        }

    def problems(self) -> Sequence[Problem]:
        """Read all problems, in the benchmark's order.

        Raises:
            DataError: the data are missing or malformed.
        """
        data = self._rows()
        found: list[Problem] = []
        for number, row in enumerate(data.rows, start=1):
            try:
                stub, tests = str(row["prompt"]), str(row["tests"])
                entry = self._entry_point(stub)
                self.language.layout(stub, entry, tests, "proof")
                problem = Problem(
                    task_id=str(row["name"]),
                    stub=stub,
                    entry_point=entry,
                    tests=Suite(text=tests, stops=tuple(map(str, row["stop_tokens"]))),
                    tool=self.language.name,
                )
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{data.where}: row {number} is not a MultiPL-E problem in {self.language.title} ({error!r}); "
                    "fetch the file again"
                ) from None
            found.append(problem)
        return found

    def data_hash(self) -> str:
        """Return the sha256 of the rows that `problems` reads."""
        return self._rows().digest

    def request(self, problem: Problem, style: str) -> Request:
        """Ask for the whole function; in the style `completion` let the model continue the stub.

        Raises:
            UnknownNameError: no such style.
        """
        if style == "completion":
            return Request(instruction=None, prefix=problem.stub, stop=(*problem.tests.stops, *END_STOPS))
        PROMPTS[style]
        title, fence = self.language.title, self.language.fence
        return Request(
            instruction=INSTRUCTION.format(title=title, fence=fence, stub=problem.stub.strip("\n")),
            prefix=f"```{fence}\n",
            stop=FENCE_STOP,
        )

    def extract(self, problem: Problem, completion: str, style: str) -> str:
        """Return the program in a completion, "" when there is none."""
        if style == "completion":
            return from_continuation(problem.stub, completion, (*problem.tests.stops, *END_STOPS))
        return from_chat(self.language, problem.stub, problem.entry_point, completion)

    def assemble(self, problem: Problem, completion: str) -> str:
        """Return the program of a raw completion that was made elsewhere."""
        return problem.stub + completion

    def sandbox(self, *, allow_unsafe: bool = False) -> Sandbox:
        """Return a sandbox; it shows candidates what is installed on this machine."""
        return Sandbox(allow_unsafe=allow_unsafe)

    def tools(self, sandbox: Sandbox) -> Sequence[Tool]:
        """Let the language judge an answer that is right and one that is wrong.

        Raises:
            SandboxError: the sandbox failed; says nothing about the language.
        """
        name, package = self.language.name, self.language.package
        found, known = self.language.toolchain, self.language.known
        fault = found.fault
        if not fault:
            entry = self._entry_point(known.stub)
            good = self._run(known.stub + known.good, entry, known.tests, sandbox)
            bad = self._run(known.stub + known.bad, entry, known.tests, sandbox)
            if good.status != "passed":
                fault = (
                    f"a right program {good.status} ({good.error or 'no message'}); check the installation of {package}"
                )
            elif bad.status == "passed":
                fault = f"a wrong program passed; check the installation of {package}"
        return [Tool(name=name, version=found.version, fault=f"{self.language.title}: {fault}" if fault else "")]

    def judge(self, problem: Problem, code: str, sandbox: Sandbox) -> Judgement:
        """Run a program with the problem's tests behind it; called from several threads at once.

        Raises:
            SandboxError: the sandbox failed; says nothing about the program.
        """
        if not code.strip():
            return Judgement(status="failed", seconds=0.0, error="no program", in_process=True)
        end = self._run(code, problem.entry_point, problem.tests.text, sandbox)
        return judgement(end, in_process=True)

    def _run(self, code: str, entry: str, tests: str, sandbox: Sandbox) -> Outcome:
        """Run a program with tests behind it and a fresh proof behind those."""
        proof = secrets.token_hex(16)
        files = self.language.layout(code, entry, tests, proof)
        return sandbox.execute(files, self.language.steps(), proof=proof, memory_mb=self.language.memory_mb)

    def _entry_point(self, stub: str) -> str:
        """Read the function's name in a stub's last line."""
        match = re.search(self.language.signature, stub.rstrip("\n").rsplit("\n", 1)[-1])
        if match is None:
            raise ShapeError("the prompt does not end with a function's first line")
        return match[1]

    def _rows(self) -> Rows:
        """Read the data, wherever they are."""
        name = f"humaneval-{self.language.data}"
        part = f"{name}/test-00000-of-00001.parquet"
        names = [f"{FOLDER}/{name}.jsonl", f"{name}.jsonl", f"{FOLDER}/{part}", part]
        return read_rows(find_data(self.name, names, hub=HUB_NAME, patterns=[f"{name}/test-*.parquet"], remedy=""))


for _language in LANGUAGES.values():
    BENCHMARKS.register(f"multipl-e-{_language.name}")(MultiplE(_language))
