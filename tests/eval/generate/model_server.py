"""A process that plays an OpenAI-compatible server: scripted answers and faults, and a log of what it was asked.

Run as `python model_server.py SCRIPT LOG`; prints its port. The script maps a piece of a prompt to what the requests
with that piece meet, one after the other; after these, and without any, they are answered.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SCRIPT = json.loads(Path(sys.argv[1]).read_text())
LOG = Path(sys.argv[2])
LOCK = threading.Lock()
STATE = {"now": 0, "most": 0}


class Server(BaseHTTPRequestHandler):
    """Answers, or fails as scripted."""

    protocol_version = "HTTP/1.1"

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
        if "models" in SCRIPT:
            return self.meet(SCRIPT["models"], {}, "")
        self.send(200, {"data": [{"id": "toy-1"}, {"id": "toy-2"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        with LOCK:
            STATE["now"] += 1
            STATE["most"] = max(STATE["most"], STATE["now"])
            event = next((rest.pop(0) for key, rest in SCRIPT["faults"].items() if key in prompt and rest), "answer")
            entry = {"path": self.path, "authorization": self.headers.get("Authorization"), "body": body}
            entry |= {"event": event, "at": time.monotonic(), "most": STATE["most"]}
            with LOG.open("a") as log:
                log.write(json.dumps(entry) + "\n")
        time.sleep(SCRIPT.get("seconds", 0))
        with LOCK:  # before the reply, behind which the next request can be faster than this thread
            STATE["now"] -= 1
        self.meet(event, body, prompt)

    def meet(self, event: str, body: dict[str, Any], prompt: str) -> None:
        kind, _, detail = event.partition(":")
        if kind == "answer":
            text = SCRIPT["text"].format(prompt=prompt, seed=body.get("seed"))
            finish = SCRIPT.get("finish", "stop")
            where = {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
            self.send(200, {"choices": [{"index": 0, "finish_reason": finish, **where}]})
        elif kind == "thought":
            self.send(200, {"choices": [{"message": {"content": None}, "finish_reason": "length"}]})
        elif kind == "status":
            status, _, wait = detail.partition(":")
            self.send(
                int(status),
                {"error": {"message": f"scripted {status}\na\x07b"}},
                **({"Retry_After": wait} if wait else {}),
            )
        elif kind == "redirect":
            self.send(307, b"", Location=detail)
        elif kind == "garbage":
            self.send(200, b"<html>busy</html>")
        elif kind == "hollow":
            self.send(200, {"object": "list"})
        elif kind == "bytes":
            self.send(200, b'{"choices": [{"text": "\xff"}]}')
        elif kind == "reset":  # an RST instead of a reply
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif kind == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [{"text": "half')
            self.close_connection = True
        elif kind == "hang":
            time.sleep(float(detail))
            self.close_connection = True
        elif kind == "endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(10**4):
                self.wfile.write(b" " * 4096)
            self.close_connection = True
        elif kind == "die":
            os._exit(1)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[3]) if len(sys.argv) > 3 else 0), Server)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    print(server.server_port, flush=True)
    server.serve_forever()
