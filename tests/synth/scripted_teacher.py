"""A server thread that plays the teacher over real HTTP: scripted answers, faults, and a log of what it was asked."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answerer = Callable[[str], str]


@dataclass
class Script:
    """What the server says, and what befalls requests before that."""

    answer: Answerer
    faults: dict[str, list[str]] = field(default_factory=dict)
    """A piece of a prompt, and what the requests with it meet, one after the other."""
    finish: str = "stop"
    usage: bool = True
    die_after: int | None = None
    """Answers after which it is gone."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    seconds: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def event(self, prompt: str) -> str:
        with self.lock:
            if self.die_after is not None and len(self.answered) >= self.die_after:
                return "gone"
            return next((rest.pop(0) for piece, rest in self.faults.items() if piece in prompt and rest), "answer")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Script

    def log_message(self, *_: Any) -> None:
        pass

    def send(self, status: int, content: Any, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.send(200, {"data": [{"id": "scripted-1"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        event = self.script.event(prompt)
        with self.script.lock:
            self.script.asked.append({"prompt": prompt, "event": event, "body": body, "path": self.path})
        kind, _, detail = event.partition(":")
        threading.Event().wait(self.script.seconds)
        if kind == "answer":
            text = self.script.answer(prompt)
            where = {"message": {"content": text}} if "messages" in body else {"text": text}
            reply: dict[str, Any] = {"choices": [{"finish_reason": self.script.finish, **where}]}
            if self.script.usage:
                reply["usage"] = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(text.split())}
            self.send(200, reply)
            with self.script.lock:
                self.script.answered.append(prompt)
        elif kind == "status":
            status, _, wait = detail.partition(":")
            headers = {"Retry_After": wait} if wait else {}
            self.send(int(status), {"error": {"message": f"scripted {status}"}}, **headers)
        elif kind == "garbage":
            self.send(200, b'{"choices": [{"mess')
        elif kind == "half":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices"')
            self.close_connection = True
        elif kind == "hang":
            threading.Event().wait(float(detail))
            self.close_connection = True
        else:  # gone
            self.close_connection = True


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        pass


@contextmanager
def played(script: Script) -> Iterator[str]:
    """Serve a script; give the address."""
    server = Quiet(("127.0.0.1", 0), type("Scripted", (Handler,), {"script": script}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def number_of(text: str) -> int:
    """Return a number that stands for a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:3])


def solution(number: int) -> str:
    """A solution that says what it adds in its name."""
    return f"```python\ndef add_{number}(x):\n    return x + {number}\n```"


def good(prompt: str) -> str:
    """Answer every prompt as a good teacher would."""
    if found := re.search(r"def add_(\d+)\(x\):\n\s+\.\.\.", prompt):  # tests for an outline
        number = int(found[1])
        asserts = [f"assert add_{number}({at}) == {at + number}" for at in (0, 1, -1, 100)]
        return "```python\n" + "\n".join(asserts) + "\n```"
    if "SAME or DIFFERENT" in prompt:
        return "DIFFERENT"
    if prompt.startswith("You will see some lines"):
        number = number_of(prompt)
        return (
            f"## Problem\nWrite a function add_{number}(x) that returns x plus {number}.\n\n## Solution\n"
            + solution(number)
        )
    if prompt.startswith("Make a programming task"):
        return f"{prompt.rsplit('Task:', 1)[1].strip()} Do it {number_of(prompt)} times as well."
    if prompt.startswith("Think up"):
        number = number_of(prompt)
        return "\n".join(f"{at}. Write add_{number + at}(x), which adds {number + at} to x." for at in range(1, 4))
    if prompt.endswith("Answer:"):
        return "Like this:\n" + solution(number_of(prompt))
    if "<QUE>" in prompt:
        number = number_of(prompt)
        first, second = (
            f"<QUE> What is {number}? <ANS> A number. </END>",
            f"<QUE> Is it prime? <ANS> Look {number} up. </END>",
        )
        return f"{first}\n\n{second} <QUE> half"
    if "<CON>" in prompt:
        return "<QUE> What is it? <ANS> A text. </END>"
    raise AssertionError(f"no answer to: {prompt}")
