"""A benchmark whose programs are instructions: what a program says happens to it."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

from xft.errors import SandboxError
from xft.eval.benchmark import Judgement, Problem, Request, Tool

N = 12


class Toy:
    """A program is a status, perhaps with `!` for one that was short of time; it is judged so."""

    name = "toy"
    limits = {"seconds": 10.0, "memory_mb": 2048}  # noqa: RUF012

    def __init__(self, dies_after: int = 10**9) -> None:
        self.left = dies_after
        self.ran: list[tuple[str, str]] = []
        self.now = 0
        self.lock = threading.Lock()
        self.hash = "hash"

    def problems(self):
        return [Problem(task_id=f"toy/{i}", stub="", entry_point="f", tool=("odd", "even")[i % 2]) for i in range(N)]

    def data_hash(self):
        return self.hash

    def request(self, problem, style):
        return Request(instruction=None, prefix=problem.task_id, stop=())

    def extract(self, problem, completion, style):
        return completion

    def assemble(self, problem, completion):
        return f"{completion}"

    def sandbox(self, *, allow_unsafe=False):
        return nullcontext(SANDBOX)

    def tools(self, sandbox):
        return TOOLS

    def judge(self, problem, code, sandbox):
        with self.lock:
            if not self.left:
                raise SandboxError("died")
            self.left -= 1
            self.ran.append((problem.task_id, code))
            self.now += 1
        time.sleep(0.002 * (hash(problem.task_id) % 3))
        try:
            return self.verdict(problem, code)
        finally:
            with self.lock:
                self.now -= 1

    def verdict(self, problem, code):
        code = code.strip()
        parts = {"base": True, "plus": code == "passed"} if code else {}
        return Judgement(status=code, seconds=1.0, error="" if code == "passed" else "why", parts=parts)


SANDBOX = SimpleNamespace(level="toy", reason="because")
TOOLS = [Tool(name="odd", version="1"), Tool(name="even", version="2")]
