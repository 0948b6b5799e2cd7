from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from scripted_teacher import Script, played

from xft.errors import FetchError, RecipeError, RunError
from xft.eval.benchmark import Request
from xft.eval.generate import Answer, Ask, Sampling, server
from xft.eval.generate.backend import Unit
from xft.synth.config import TeacherConfig
from xft.synth.store import Store
from xft.synth.task import Question
from xft.synth.teacher import Teacher, open_teacher


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Script], str]]:
    monkeypatch.setattr(server, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(server.KEY, raising=False)
    with ExitStack() as stack:
        yield lambda script: stack.enter_context(played(script))


def echo(prompt: str) -> str:
    return f"{prompt} it is"


def opened(url: str, store: Path, **given: Any) -> Teacher:
    return open_teacher(TeacherConfig(name=url, **{"batch": 3, **given}), store)


def questions(*prompts: str, temperature: float = 0.0, seed: int = 0, sample: int = 0) -> list[Question]:
    sampling = Sampling(temperature=temperature, seed=seed)
    return [
        Question(request=Request(instruction=prompt, prefix="", stop=()), sampling=sampling, sample=sample)
        for prompt in prompts
    ]


def texts(teacher: Teacher, asked: list[Question]) -> list[str]:
    return [answer.text for answer in teacher.answer(asked)]


def test_answers_come_in_order_and_equal_questions_are_asked_once(serve: Any, tmp_path: Path) -> None:
    script = Script(echo)
    teacher = opened(serve(script), tmp_path)
    assert texts(teacher, questions("b", "a", "b")) == ["b it is", "a it is", "b it is"]
    assert sorted(each["prompt"] for each in script.asked) == ["a", "b"]
    assert script.asked[0]["path"] == "/v1/chat/completions"
    assert script.asked[0]["body"]["model"] == "scripted-1"


def test_what_was_answered_is_not_asked_again_by_any_run(serve: Any, tmp_path: Path) -> None:
    script = Script(echo)
    url = serve(script)
    first = opened(url, tmp_path)
    texts(first, questions("a", "b"))
    again = opened(url, tmp_path)
    assert texts(again, questions("b", "c")) == ["b it is", "c it is"]
    assert len(script.asked) == 3
    assert (again.usage.answers, again.usage.found) == (2, 1)
    assert (again.usage.prompt_tokens, again.usage.completion_tokens, again.usage.found_tokens) == (2, 6, 4)
    assert first.usage.seconds > 0


def test_another_model_decoding_sample_or_prompt_is_another_answer(serve: Any, tmp_path: Path) -> None:
    teacher = opened(serve(Script(echo)), tmp_path)
    other = opened(teacher.backend.settings()["url"], tmp_path, model="other")
    asked = [
        *questions("a"), *questions("b"), *questions("a", temperature=0.5), *questions("a", temperature=0.5, seed=1),
        *questions("a", temperature=0.5, sample=1),
    ]  # fmt: skip
    keys = {teacher.key(each) for each in asked} | {other.key(questions("a")[0])}
    assert len(keys) == 6
    assert teacher.key(questions("a", seed=1)[0]) == teacher.key(questions("a")[0])  # greedy: no seed


@pytest.mark.parametrize("fault", ["status:429:0", "status:500", "status:503", "garbage", "half", "gone"])
def test_faults_that_go_away_cost_nothing_but_time(serve: Any, tmp_path: Path, fault: str) -> None:
    script = Script(echo, faults={"b": [fault] * 2})
    teacher = opened(serve(script), tmp_path)
    assert texts(teacher, questions("a", "b", "c")) == ["a it is", "b it is", "c it is"]
    assert len(script.asked) == 5


def test_what_a_model_reasons_first_is_no_part_of_its_answer(serve: Any, tmp_path: Path) -> None:
    teacher = opened(serve(Script(lambda _: "<think>\nThey are the same, but\n</think>\n\nDIFFERENT")), tmp_path)
    assert [each.strip() for each in texts(teacher, questions("a"))] == ["DIFFERENT"]
    assert [each.strip() for each in texts(teacher, questions("a"))] == ["DIFFERENT"]  # out of the store


def test_time_outs_are_tried_again(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TIMEOUT", 0.3)
    script = Script(echo, faults={"b": ["hang:2"]})
    assert texts(opened(serve(script), tmp_path), questions("a", "b")) == ["a it is", "b it is"]


def test_a_teacher_that_goes_away_leaves_its_answers(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ATTEMPTS", 2)
    script = Script(echo, die_after=4)
    teacher = opened(serve(script), tmp_path)
    asked = questions(*"abcdefgh")
    with pytest.raises(FetchError, match=r"no answer in 2 tries.*run the same command, the answers so far are kept"):
        teacher.answer(asked)
    kept = len(script.answered)
    assert len(list(tmp_path.rglob("*.json"))) == kept >= 4
    script.die_after = None
    before = len(script.asked)
    assert texts(teacher, asked) == [f"{letter} it is" for letter in "abcdefgh"]
    assert len(script.asked) - before == 8 - kept


def test_a_request_that_is_refused_is_an_answer_that_is_not_kept(serve: Any, tmp_path: Path) -> None:
    script = Script(echo, faults={"b": ["status:400"]})
    teacher = opened(serve(script), tmp_path)
    refused = teacher.answer(questions("a", "b"))[1]
    assert (refused.finish, refused.text) == ("refused", "HTTP 400 scripted 400")
    assert texts(teacher, questions("b")) == ["b it is"]


def test_an_answer_that_the_server_broke_off_is_not_kept(serve: Any, tmp_path: Path) -> None:
    script = Script(echo, finish="content_filter")
    teacher = opened(serve(script), tmp_path)
    assert teacher.answer(questions("a"))[0].finish == "broken"
    script.finish = "stop"
    assert teacher.answer(questions("a"))[0].finish == "stop"
    assert len(script.asked) == 2


def test_a_server_that_refuses_everything_ends_the_run(serve: Any, tmp_path: Path) -> None:
    script = Script(echo, faults={"": ["status:422"] * 99})
    with pytest.raises(FetchError, match="refused 20 requests in a row, the last: HTTP 422 scripted 422"):
        opened(serve(script), tmp_path).answer(questions(*map(str, range(40))))


def test_a_wrong_key_ends_the_run_and_the_key_shows_nowhere(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(server.KEY, "sk-very-secret")
    script = Script(echo, faults={"b": ["status:401"]})
    teacher = opened(serve(script), tmp_path)
    with pytest.raises(FetchError, match=r"HTTP 401 .*the key comes from OPENAI_API_KEY") as caught:
        teacher.answer(questions("a", "b"))
    stored = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert "sk-very-secret" not in stored + str(caught.value) + json.dumps(teacher.identity)


def test_a_server_that_repeats_the_key_does_not_make_it_show(monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import urllib.error
    from email.message import Message

    monkeypatch.setenv(server.KEY, "sk-very-secret")
    body = io.BytesIO(b'{"error": {"message": "Incorrect key: sk-very-secret."}}')
    with urllib.error.HTTPError("http://host", 401, "no", Message(), body) as error:
        assert server._said(error) == "HTTP 401 Incorrect key: ***."


def test_answers_without_counts_are_counted_as_such(serve: Any, tmp_path: Path) -> None:
    teacher = opened(serve(Script(echo, usage=False)), tmp_path)
    teacher.answer(questions("a", "b"))
    assert (teacher.usage.uncounted, teacher.usage.completion_tokens) == (2, 0)


def test_a_damaged_value_is_asked_again(serve: Any, tmp_path: Path) -> None:
    script = Script(echo)
    teacher = opened(serve(script), tmp_path)
    teacher.answer(questions("a"))
    [path] = tmp_path.rglob("*.json")
    path.write_text('{"text": "a')
    assert texts(teacher, questions("a")) == ["a it is"]
    assert len(script.asked) == 2


def test_a_store_gives_back_what_was_put(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = Store.key(words="é", number=1)
    assert store.get(key) is None
    store.put(key, {"text": "é"})
    store.put(key, {"text": "ö"})
    assert Store(tmp_path).get(key) == {"text": "ö"}
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".json"]


def test_a_store_that_can_not_be_written_is_named_before_anything_is_paid_for(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file: the store of answers can't be written .*--store"):
        Store(tmp_path / "file")
    store = Store(tmp_path / "store")
    (tmp_path / "store" / "ab").touch()
    with pytest.raises(RunError, match="make room"):
        store.put("abc", 1)


def test_threads_that_keep_the_same_value_do_not_disturb_each_other(tmp_path: Path) -> None:
    key = Store.key(kind="test")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(partial(Store(tmp_path).put, key), range(400)))
    assert Store(tmp_path).get(key) in range(400)
    assert len(list(tmp_path.rglob("*.json*"))) == 1


class Units:
    """A back end whose answers come by twos, in words that show with which others they were made."""

    style = "chat"

    def __init__(self, die_after: int | None = None) -> None:
        self.left = die_after

    def settings(self) -> dict[str, Any]:
        return {}

    def units(self, asks: Sequence[Ask]) -> list[Unit]:
        return [asks[start : start + 2] for start in range(0, len(asks), 2)]

    def complete(self, units: Sequence[Unit], sampling: Sampling) -> Iterator[tuple[Ask, Answer]]:
        for unit in units:
            for ask in unit:
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left = None if self.left is None else self.left - 1
                yield ask, Answer(text="".join(each.request.instruction or "" for each in unit), finish="stop")

    def close(self) -> None:
        pass


def test_answers_that_are_made_together_are_kept_together(tmp_path: Path) -> None:
    def teacher(folder: str, die_after: int | None = None) -> Teacher:
        return Teacher(name="t", backend=Units(die_after), identity={}, store=Store(tmp_path / folder))

    asked = questions(*"abcdef")
    with pytest.raises(KeyboardInterrupt):
        teacher("cut", die_after=3).answer(asked)
    assert len(list((tmp_path / "cut").rglob("*.json"))) == 2
    assert texts(teacher("cut"), asked) == texts(teacher("whole"), asked) == ["ab", "ab", "cd", "cd", "ef", "ef"]


def test_a_local_models_name_and_a_servers_model_do_not_go_together(tiny_dense: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--model other: names a server's model"):
        opened(str(tiny_dense), tmp_path, model="other")


def test_a_local_model_answers_in_batches_and_its_weights_are_its_name(tiny_dense: Path, tmp_path: Path) -> None:
    teacher = opened(str(tiny_dense), tmp_path, batch=2, backend="transformers")
    asked = [
        Question(request=Request(instruction=each, prefix="", stop=()), sampling=Sampling(max_new_tokens=4))
        for each in "abc"
    ]
    made = teacher.answer(asked)
    assert all(answer.prompt_tokens and answer.completion_tokens for answer in made)
    again = opened(str(tiny_dense), tmp_path, batch=2, backend="transformers")
    assert again.answer(asked) == made
    assert again.usage.found == 3
    assert set(teacher.identity) == {"model", "dtype", "backend"}
