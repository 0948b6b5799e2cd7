"""The back end `openai`: any server that speaks OpenAI's completions API, such as those of llama.cpp and vLLM.

The style `chat` uses the server's chat endpoint and so the server's own template. A server can't be made to go on with
an answer that has been begun, so there the request's prefix is not sent, its stop strings, which assume the prefix, are
not used, and the completion is the whole answer. Every other style sends its text to the completions endpoint.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from xft.errors import FetchError, RecipeError
from xft.eval.benchmark import Request
from xft.eval.generate.backend import Answer, Ask, Sampling, Unit, ask_seed, first_stop
from xft.prompts import PROMPTS

KEY = "OPENAI_API_KEY"
ATTEMPTS = 7
"""Tries a request gets; with the pauses between them a server has about a minute to come back."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
LONGEST_WISH = 300.0
"""Seconds that a server's Retry-After may ask for; one that wants more is taken to be out of service."""
TIMEOUT = 600.0
"""Seconds for one whole answer; a small server may work on all that it was sent before it gives the first."""
MAX_REPLY = 32 << 20
MAX_STOPS = 4
"""Stop strings that every server takes; the text is cut at the others when it is here."""
AGAIN = {408, 409, 425, 429}
"""HTTP statuses below 500 that say: try again."""
WHOLE = {"stop", "eos_token", "stop_sequence", "None"}
"""Reasons to finish of an answer that is whole; None of a server that names none."""
NO_ENTRY = {401, 403}
THIS_ONE = {400, 413, 422}
"""HTTP statuses by which a server may refuse one request and serve the next: too long, or against its rules."""


class ServerBackend:
    """A server that answers over HTTP."""

    def __init__(self, model: str, *, style: str, url: str | None, batch: int, precision: str) -> None:
        """Find the server; without a model's name it is the first that the server has."""
        self.style = "chat" if style == "auto" else style
        if self.style != "completion":
            PROMPTS[self.style]
        self.url = _base_url(url)
        _check_key(os.environ.get(KEY, ""))
        self.batch = batch
        self._endpoint = "chat/completions" if self.style == "chat" else "completions"
        # No redirects: they would take the key to another host.
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._served = self._models()
        self.model = model or (self._served or ["default"])[0]

    def settings(self) -> dict[str, Any]:
        """Return address, endpoint, the model asked for and those that the server has; the rest it doesn't tell."""
        return {
            "backend": "openai",
            "url": self.url,
            "endpoint": self._endpoint,
            "sent": "instruction" if self.style == "chat" else "instruction, prefix and stop strings",
            "model": self.model,
            "served": self._served,
            "requests_at_once": self.batch,
        }

    def units(self, asks: Sequence[Ask]) -> list[Unit]:
        """Return each answer alone: the server sees to their batching."""
        return [[ask] for ask in asks]

    def complete(self, units: Sequence[Unit], sampling: Sampling) -> Iterator[tuple[Ask, Answer]]:
        """Answer with `batch` requests at once; what was answered before a failure is given before it is raised."""
        waiting = iter(units)
        taking = threading.Lock()
        results: queue.Queue[tuple[Ask, Answer] | BaseException | None] = queue.Queue()
        stopping = threading.Event()

        def work() -> None:
            try:
                while not stopping.is_set():
                    with taking:
                        unit = next(waiting, None)
                    if unit is None:
                        break
                    results.put((unit[0], self._answer(unit[0], sampling, stopping)))
            except BaseException as error:  # goes to the caller's thread
                stopping.set()
                results.put(error)
            results.put(None)

        # Daemons: a process that is told to end need not wait for the server.
        workers = [threading.Thread(target=work, daemon=True) for _ in range(min(self.batch, len(units)))]
        failures: list[BaseException] = []
        try:
            for worker in workers:
                worker.start()
            left = len(workers)
            while left:
                result = results.get()
                if result is None:
                    left -= 1
                elif isinstance(result, BaseException):
                    failures.append(result)
                else:
                    yield result
        finally:
            stopping.set()
        if failures:
            raise next((error for error in failures if not isinstance(error, _StoppedError)), failures[0])

    def close(self) -> None:
        """Do nothing: connections don't outlive their request."""

    def _answer(self, ask: Ask, sampling: Sampling, stopping: threading.Event) -> Answer:
        stop = () if self.style == "chat" else ask.request.stop
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stream": False,
            **self._prompt(ask.request),
        }
        if sampling.temperature > 0:
            body["seed"] = ask_seed(sampling.seed, ask)
        if sent := sendable_stops(stop):
            body["stop"] = sent
        try:
            answer = self._ask(f"{ask.task_id}, sample {ask.sample}", body, stopping)
        except _RefusedError as error:
            if error.status in THIS_ONE:
                return Answer(text=error.said, finish="refused")
            raise
        cut = first_stop(answer.text, stop)
        finish = "stop" if cut is not None or answer.finish in WHOLE else answer.finish
        return replace(answer, text=answer.text[:cut], finish=finish if finish in ("stop", "length") else "broken")

    def _prompt(self, request: Request) -> dict[str, Any]:
        if request.instruction is None:
            content = request.prefix
        elif self.style == "chat":
            content = request.instruction
        else:
            content = PROMPTS[self.style].before(_NoTokens(), request.instruction) + request.prefix
        if self.style == "chat":
            return {"messages": [{"role": "user", "content": content}]}
        return {"prompt": content}

    def _ask(self, what: str, body: dict[str, Any], stopping: threading.Event) -> Answer:
        """Return the whole answer with the server's finish reason, trying again while that can help.

        Raises:
            FetchError: it can't, or has not.
        """
        fault = ""
        for attempt in range(ATTEMPTS):
            try:
                return _choice(self._request(self._endpoint, body))
            except _TryAgainError as error:
                fault = str(error)
                pause = error.wish
                if pause is None:
                    pause = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) * random.uniform(0.75, 1.25)
                elif pause > LONGEST_WISH:
                    raise FetchError(
                        f"{self.url}: {what}: {fault}, and asks to wait {pause:.0f} s; run the same command later, "
                        "the answers so far are kept"
                    ) from None
            if stopping.wait(pause if attempt < ATTEMPTS - 1 else 0):
                raise _StoppedError(f"{self.url}: {what}: {fault}")
        raise FetchError(
            f"{self.url}: {what}: no answer in {ATTEMPTS} tries, the last: {fault}; start the server again and run the "
            "same command, the answers so far are kept"
        )

    def _request(self, endpoint: str, body: dict[str, Any] | None) -> Any:
        """Return the JSON of a reply.

        Raises:
            _TryAgainError: a fault that may go away.
            FetchError: the server refuses.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/{endpoint}", data=data, headers=headers)
        ends = time.monotonic() + TIMEOUT
        try:
            with self._opener.open(request, timeout=TIMEOUT) as reply:
                pieces, size = [], 0
                while piece := reply.read1(1 << 16):
                    size += len(piece)
                    pieces.append(piece)
                    if size > MAX_REPLY or time.monotonic() > ends:
                        raise _TryAgainError("a reply without end")
                if reply.length:  # what is left of the announced length
                    raise _TryAgainError("a reply that was cut off")
            return json.loads(b"".join(pieces))
        except urllib.error.HTTPError as error:
            with error:
                said = _said(error)
            if error.code in AGAIN or error.code >= 500:
                raise _TryAgainError(said, wish=_wish(error.headers.get("Retry-After"))) from None
            hint = f" (the key comes from {KEY})" if error.code in NO_ENTRY else ""
            raise _RefusedError(f"{self.url}/{endpoint}: refused: {said}{hint}", error.code, said) from None
        except urllib.error.URLError as error:
            raise _TryAgainError(f"not reached ({error.reason})", reached=False) from None
        except TimeoutError:
            raise _TryAgainError(f"no reply within {TIMEOUT:.0f} s", reached=False) from None
        except (OSError, http.client.HTTPException) as error:
            raise _TryAgainError(f"the connection broke ({type(error).__name__})", reached=False) from None
        except ValueError:
            raise _TryAgainError("a reply that is no JSON") from None

    def _models(self) -> list[str]:
        """Return what the server says it serves, if it does, and so find out at once that there is one."""
        try:
            tree = self._request("models", None)
        except _TryAgainError as error:
            if error.reached:  # it has no such list, or is loading its model; the first answer will show
                return []
            raise FetchError(
                f"{self.url}: no server answers: {error}; start one (llama-server -m MODEL.gguf, vllm serve MODEL), "
                "or correct the address"
            ) from None
        except _RefusedError as error:
            if error.status in NO_ENTRY:
                raise
            return []
        entries = tree.get("data") if isinstance(tree, dict) else None
        return [str(entry["id"]) for entry in entries or [] if isinstance(entry, dict) and "id" in entry]


def sendable_stops(stop: Sequence[str]) -> list[str]:
    """Choose the stop strings to send: none that another one is part of, and those that begin a line first.

    The others are mostly spellings of tokens at which a server ends by itself.
    """
    needed = [text for text in dict.fromkeys(stop) if not any(other != text and other in text for other in stop)]
    return sorted(needed, key=lambda text: not text.startswith("\n"))[:MAX_STOPS]


class _TryAgainError(Exception):
    """Report a fault that may go away: whether a server was `reached`, and its Retry-After in seconds as `wish`."""

    def __init__(self, message: str, *, reached: bool = True, wish: float | None = None) -> None:
        super().__init__(message)
        self.reached, self.wish = reached, wish


class _RefusedError(FetchError):
    """Report a request that the server refused with an HTTP `status`, and what it said."""

    def __init__(self, message: str, status: int, said: str) -> None:
        super().__init__(message)
        self.status, self.said = status, said


class _StoppedError(FetchError):
    """Report a request that was given up because another one failed."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Make a redirect an HTTPError."""

    def redirect_request(self, *_: Any) -> None:
        """Refuse."""


class _NoTokens:
    """What prompt styles may know of a server's tokenizer: nothing; the server puts BOS itself."""

    chat_template = None
    bos_token: str | None = None
    eos_token: str | None = None

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any:
        """Refuse; only the style `chat` renders a template, and that goes to the chat endpoint."""
        raise RecipeError("prompt: this style renders the model's chat template, which a server keeps; use prompt=chat")


def _check_key(key: str) -> None:
    """Refuse a key that no HTTP header can hold; raises RecipeError."""
    if any(not "!" <= character <= "~" for character in key):
        raise RecipeError(
            f"{KEY}: the key in the environment holds a blank, a line break or a character that is no ASCII; set it"
        )


def _base_url(url: str | None) -> str:
    """Return the address that endpoints are put behind; `/v1` is added to one without a path.

    Raises:
        RecipeError: none, or one that can't be such an address.
    """
    if not url:
        raise RecipeError("url: --backend openai needs a server's address, such as --url http://127.0.0.1:8080/v1")
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise RecipeError(f"url: give only scheme, host, port and path; a key belongs in the environment as {KEY}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RecipeError(f"url: {url!r} is no http address; it looks like http://127.0.0.1:8080/v1")
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") or "/v1", "", ""))


def _choice(tree: Any) -> Answer:
    """Return the answer in a reply of either endpoint, with the server's finish reason."""
    try:
        first = tree["choices"][0]
        text = first["message"]["content"] if "message" in first else first["text"]
        if not isinstance(text, str | None):
            raise TypeError
    except (KeyError, IndexError, TypeError):
        raise _TryAgainError("a reply without an answer in it") from None
    # None: the model only thought, or called a tool. Lone surrogates can't be written as UTF-8 later.
    return Answer(
        text=(text or "").encode(errors="replace").decode(),
        finish=str(first.get("finish_reason")),
        prompt_tokens=_count(tree, "prompt_tokens"),
        completion_tokens=_count(tree, "completion_tokens"),
    )


def _count(tree: Any, name: str) -> int | None:
    """Return a count of the server's account of usage, None where it gives none."""
    usage = tree.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) else None


def _said(error: urllib.error.HTTPError) -> str:
    """Return status and the server's own words, in a line."""
    words = ""
    with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
        body = error.read(1 << 16).decode(errors="replace")
        words = body
        tree = json.loads(body)
        fault = tree.get("error", tree) if isinstance(tree, dict) else tree
        words = str(fault.get("message", fault)) if isinstance(fault, dict) else str(fault)
    if key := os.environ.get(KEY):  # some servers repeat it
        words = words.replace(key, "***")
    words = "".join(character if character.isprintable() else " " for character in words)
    return f"HTTP {error.code} {' '.join(words.split())[:300]}".rstrip()


def _wish(header: str | None) -> float | None:
    """Return Retry-After in seconds from now; it is a number or a date."""
    if not header:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(header))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    return None
