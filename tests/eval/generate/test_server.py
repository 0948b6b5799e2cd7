"""The back end for OpenAI-compatible servers, against a process that plays one, faults included."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from toy_prompts import ToyPrompts, answers

from xft.errors import FetchError, RecipeError, UnknownNameError
from xft.eval.generate import loop, open_backend, server

PLAYER = Path(__file__).with_name("model_server.py")


class Played:
    """A running player."""

    def __init__(self, folder: Path, port: int = 0, **script: Any) -> None:
        self.log = folder / "log.jsonl"
        path = folder / "script.json"
        path.write_text(json.dumps({"text": "x\n```\nrest", "faults": {}, **script}))
        command = [sys.executable, str(PLAYER), str(path), str(self.log), str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def asked(self) -> list[dict[str, Any]]:
        """Return what was asked so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Played]]:
    monkeypatch.setattr(server, "FIRST_PAUSE", 0.01)
    monkeypatch.delenv(server.KEY, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    players: list[Played] = []

    def start(**script: Any) -> Played:
        players.append(Played(tmp_path, **script))
        return players[-1]

    yield start
    for player in players:
        player.end()


def opened(url: str, style: str = "magicoder", batch: int = 3) -> Any:
    return open_backend("openai", "toy-1", style=style, url=url, batch=batch)


def test_the_completions_endpoint_gets_the_styles_whole_text(play: Callable[..., Played], tmp_path: Path) -> None:
    player = play()
    made = answers(opened(player.url), tmp_path / "a")
    assert [sample["task_id"] for sample in made] == [f"T/{number}" for number in range(5)]
    assert {(sample["completion"], sample["finish"]) for sample in made} == {("x", "stop")}
    assert {sample["code"] for sample in made} == {"<magicoder>x"}
    for asked in player.asked():
        assert asked["path"] == "/v1/completions"
        body = asked["body"]
        assert body["prompt"].startswith("You are an exceptionally intelligent coding assistant")
        assert body["prompt"].endswith("\n\n@@ Response\n```python\n")
        expected = {"model": "toy-1", "max_tokens": 6, "temperature": 0.0, "top_p": 1.0, "stop": ["\n```"]}
        assert {name: body.get(name) for name in expected} == expected
        assert "seed" not in body


def test_the_style_completion_sends_the_prefix_alone(play: Callable[..., Played], tmp_path: Path) -> None:
    player = play()
    answers(opened(player.url, "completion"), tmp_path / "a")
    assert sorted(asked["body"]["prompt"] for asked in player.asked()) == sorted(
        problem.stub for problem in ToyPrompts().problems()
    )


@pytest.mark.parametrize("style", ["chat", "auto"])
def test_the_chat_endpoint_gets_the_instruction_and_its_whole_answer_is_kept(
    play: Callable[..., Played], tmp_path: Path, style: str
) -> None:
    player = play(text="Sure:\n```python\ndef a\n```\nDone.")
    backend = opened(player.url, style)
    assert backend.style == "chat"
    made = answers(backend, tmp_path / "a")
    assert {sample["completion"] for sample in made} == {"Sure:\n```python\ndef a\n```\nDone."}
    for asked in player.asked():
        assert asked["path"] == "/v1/chat/completions"
        [message] = asked["body"]["messages"]
        assert message["role"] == "user"
        assert message["content"] in {problem.stub for problem in ToyPrompts().problems()}
        assert "stop" not in asked["body"]


def test_samples_have_seeds_of_their_own_that_do_not_depend_on_the_others(
    play: Callable[..., Played], tmp_path: Path
) -> None:
    player = play(text="{seed}")
    toy = ToyPrompts()
    how = {"n": 3, "temperature": 0.8, "top_p": 0.9, "seed": 4}
    whole = answers(opened(player.url), tmp_path / "whole", toy, **how)
    assert {asked["body"]["temperature"] for asked in player.asked()} == {0.8}
    assert {asked["body"]["top_p"] for asked in player.asked()} == {0.9}
    seeds = [int(sample["completion"]) for sample in whole]
    assert len(set(seeds)) == 15
    assert all(0 <= seed < 2**31 for seed in seeds)
    part = answers(opened(player.url), tmp_path / "part", toy, problems=toy.problems()[2:3], **how)
    assert part == [sample for sample in whole if sample["task_id"] == "T/2"]
    other = answers(opened(player.url), tmp_path / "other", toy, **{**how, "seed": 5})
    assert set(seeds).isdisjoint(int(sample["completion"]) for sample in other)


def test_a_server_gets_four_stop_strings_and_all_of_them_cut(play: Callable[..., Played], tmp_path: Path) -> None:
    player = play(text="a</s>b\nfive\nfour\nthree")
    stops = ("</s>", "\ntwo", "\ntwo and", "\nthree", "\nfour", "\nfive", "\nsix")
    made = answers(opened(player.url), tmp_path / "a", ToyPrompts(stop=stops))
    assert {(sample["completion"], sample["finish"]) for sample in made} == {("a", "stop")}
    assert {tuple(asked["body"]["stop"]) for asked in player.asked()} == {("\ntwo", "\nthree", "\nfour", "\nfive")}


@pytest.mark.parametrize(("text", "finish", "expected"), [
    ("long", "length", ("long", "length")),
    ("long\n```\n", "length", ("long", "stop")),
    ("done", "stop", ("done", "stop")),
    ("done", None, ("done", "stop")),
    ("half", "content_filter", ("half", "broken")),
    ("half", "abort", ("half", "broken")),
    ("long\n```\n", "abort", ("long", "stop")),
])  # fmt: skip
def test_the_reason_for_an_answers_end_is_kept(
    play: Callable[..., Played], tmp_path: Path, text: str, finish: str, expected: tuple[str, str]
) -> None:
    made = answers(opened(play(text=text, finish=finish).url), tmp_path / "a")
    assert {(sample["completion"], sample["finish"]) for sample in made} == {expected}


def test_an_answer_of_thoughts_alone_is_empty(play: Callable[..., Played], tmp_path: Path) -> None:
    made = answers(opened(play(faults={"def bb": ["thought"]}).url, "chat"), tmp_path / "a")
    assert (made[1]["completion"], made[1]["finish"]) == ("", "length")


FAULTS = (
    "status:429", "status:500", "status:502", "status:503", "status:408", "reset", "garbage", "hollow", "bytes", "cut",
    "hang:3", "endless",
)  # fmt: skip


def test_faults_that_may_go_away_are_tried_again(
    play: Callable[..., Played], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "TIMEOUT", 1.0)
    monkeypatch.setattr(server, "MAX_REPLY", 1 << 20)
    player = play(
        faults={f"def {letter}": list(FAULTS[at : at + 3]) for at, letter in zip((0, 3, 6, 9), "abcd", strict=True)}
    )
    made = answers(opened(player.url), tmp_path / "a")
    assert {sample["completion"] for sample in made} == {"x"}
    events = [asked["event"] for asked in player.asked()]
    assert sorted(events) == sorted([*FAULTS, *["answer"] * 5])


def test_retry_after_is_kept_as_seconds_and_as_a_date(play: Callable[..., Played], tmp_path: Path) -> None:
    assert server._wish(formatdate(time.time() + 100, usegmt=True)) == pytest.approx(100, abs=3)
    assert server._wish("nonsense") is None
    player = play(faults={"def bb": ["status:429:0.7", "status:503:0"]})
    answers(opened(player.url), tmp_path / "a")
    first, second, third = [asked["at"] for asked in player.asked() if "def bb" in asked["body"]["prompt"]]
    assert second - first >= 0.7
    assert third - second < 0.7


def test_a_server_that_asks_for_hours_is_an_error_at_once(play: Callable[..., Played], tmp_path: Path) -> None:
    player = play(faults={"def bb": ["status:429:7200"]})
    with pytest.raises(FetchError, match=r"T/1, sample 0: HTTP 429 scripted 429 a b, and asks to wait 7200 s"):
        answers(opened(player.url), tmp_path / "a")


def test_so_many_requests_run_at_once_and_no_more(play: Callable[..., Played], tmp_path: Path) -> None:
    player = play(seconds=0.15)
    answers(opened(player.url, batch=4), tmp_path / "a", n=3, temperature=1.0)
    assert max(asked["most"] for asked in player.asked()) == 4


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_problem_that_is_refused_gets_the_empty_answer_and_the_others_are_asked(
    play: Callable[..., Played], tmp_path: Path, status: int
) -> None:
    player = play(faults={"def a": [f"status:{status}"] * 9})
    known: dict[Any, Any] = {}
    made = answers(opened(player.url), tmp_path / "a", n=9, temperature=1.0, known=known)
    refused, rest = made[:9], made[9:]
    assert {(each["completion"], each["finish"]) for each in refused} == {("", "refused")}
    assert {each["refusal"] for each in refused} == {f"HTTP {status} scripted {status} a b"}
    assert {(each["completion"], each["finish"], "refusal" in each) for each in rest} == {("x", "stop", False)}
    asked = len(player.asked())
    assert answers(opened(player.url), tmp_path / "plus", n=9, temperature=1.0, known=known) == made
    assert len(player.asked()) == asked


def test_a_server_that_refuses_all_it_is_asked_first_ends_the_run_and_leaves_no_answer(
    play: Callable[..., Played], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "TRIAL", 3)
    player = play(faults={"def": ["status:400"] * 3})
    with pytest.raises(
        FetchError, match=r"refused the first problems, all of them, the last: HTTP 400 scripted 400 a b"
    ):
        answers(opened(player.url, batch=1), tmp_path / "a")
    assert (tmp_path / "a" / "samples.jsonl").read_text() == ""
    assert {each["finish"] for each in answers(opened(player.url), tmp_path / "a")} == {"stop"}


@pytest.mark.parametrize("status", [401, 404])
def test_a_refusal_of_all_requests_ends_the_run_with_the_servers_words(
    play: Callable[..., Played], tmp_path: Path, status: int
) -> None:
    player = play(faults={"def bb": [f"status:{status}"] * 9})
    with pytest.raises(FetchError, match=rf"refused: HTTP {status} scripted {status}"):
        answers(opened(player.url), tmp_path / "a")
    assert [asked["event"] for asked in player.asked()].count(f"status:{status}") == 1


def test_what_was_answered_before_a_server_went_away_is_kept(play: Callable[..., Played], tmp_path: Path) -> None:
    player = play(faults={"def d": ["die"]}, text="{seed}", seconds=0.02)
    toy = ToyPrompts()
    how = {"n": 4, "temperature": 1.0, "seed": 1}
    out = tmp_path / "a"
    with pytest.raises(FetchError, match=r"no answer in 7 tries, the last: not reached .*the answers so far are kept"):
        answers(opened(player.url, batch=2), out, toy, **how)
    kept = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    given = [asked["body"]["prompt"] for asked in player.asked() if asked["event"] == "answer"]
    assert len(given) - 2 <= len(kept) <= len(given)  # two may have been on their way when it died
    assert len(kept) >= 10
    before = len(player.asked())
    again = play(text="{seed}", port=player.port)
    made = answers(opened(again.url, batch=2), out, toy, **how)
    assert len(again.asked()) - before == 20 - len(kept)
    assert made == answers(opened(again.url), tmp_path / "whole", toy, **how)


def test_a_missing_server_is_an_error_when_it_is_opened(play: Callable[..., Played]) -> None:
    player = play()
    player.end()
    began = time.monotonic()
    with pytest.raises(FetchError, match=rf"{player.url}: no server answers: not reached .*llama-server"):
        opened(player.url)
    assert time.monotonic() - began < 5


def test_the_key_is_sent_and_shows_nowhere(
    play: Callable[..., Played], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    key = "sk-very-secret"
    monkeypatch.setenv(server.KEY, key)
    player = play(faults={"def d": ["status:401"]})
    backend = opened(player.url)
    out = tmp_path / "a"
    with pytest.raises(FetchError, match=r"HTTP 401 scripted 401 a b \(the key comes from OPENAI_API_KEY\)") as caught:
        answers(backend, out)
    assert {asked["authorization"] for asked in player.asked()} == {f"Bearer {key}"}
    assert key not in json.dumps(backend.settings()) + str(caught.value) + "".join(capfd.readouterr())
    assert all(key not in path.read_text() for path in out.rglob("*") if path.is_file())


@pytest.mark.parametrize("key", ["sk-very-secret\n", "sk very", "sk-\u00e9"])
def test_a_key_that_no_header_can_hold_is_an_error_at_once(
    play: Callable[..., Played], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv(server.KEY, key)
    player = play()
    with pytest.raises(RecipeError, match=r"^OPENAI_API_KEY: the key in the environment holds") as caught:
        opened(player.url)
    assert key.strip() not in str(caught.value)
    assert player.asked() == []


def test_a_redirect_does_not_take_the_key_elsewhere(
    play: Callable[..., Played], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(server.KEY, "sk-very-secret")
    other = tmp_path / "other"
    other.mkdir()
    elsewhere = Played(other)
    try:
        player = play(faults={"def d": [f"redirect:{elsewhere.url}/completions"]})
        with pytest.raises(FetchError, match="refused: HTTP 307"):
            answers(opened(player.url), tmp_path / "a")
        assert elsewhere.asked() == []
    finally:
        elsewhere.end()


def test_settings_name_the_servers_models(play: Callable[..., Played]) -> None:
    player = play()
    settings = opened(player.url + "/").settings()
    assert settings["url"] == player.url
    assert (settings["model"], settings["served"]) == ("toy-1", ["toy-1", "toy-2"])
    assert settings["endpoint"] == "completions"
    assert settings["sent"] == "instruction, prefix and stop strings"
    chat = opened(player.url, "chat").settings()
    assert (chat["endpoint"], chat["sent"]) == ("chat/completions", "instruction")
    assert opened(f"http://127.0.0.1:{player.port}").settings()["url"] == player.url


@pytest.mark.parametrize("models", ["status:404", "status:500", "status:503", "garbage"])
def test_a_server_without_a_list_of_models_will_do(play: Callable[..., Played], tmp_path: Path, models: str) -> None:
    player = play(models=models)
    assert opened(player.url).settings()["served"] == []
    assert len(answers(opened(player.url), tmp_path / "a")) == 5


def test_a_server_that_lets_nobody_in_is_an_error_when_it_is_opened(play: Callable[..., Played]) -> None:
    with pytest.raises(FetchError, match=r"refused: HTTP 401 scripted 401 a b \(the key comes from"):
        opened(play(models="status:401").url)


@pytest.mark.parametrize(("url", "says"), [
    (None, "needs a server's address"),
    ("127.0.0.1:8080", "is no http address"),
    ("file:///etc/passwd", "is no http address"),
    ("http://name:secret@host/v1", "a key belongs in the environment"),
    ("https://host/v1?api_key=secret", "a key belongs in the environment"),
])  # fmt: skip
def test_an_address_that_can_not_be_one_is_refused_without_repeating_a_secret(url: str | None, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        open_backend("openai", "m", style="chat", url=url)
    assert "secret" not in str(caught.value)


def test_an_unknown_style_is_refused(play: Callable[..., Played]) -> None:
    with pytest.raises(UnknownNameError, match="unknown prompt style 'tea'"):
        opened(play().url, "tea")
