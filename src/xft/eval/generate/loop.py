"""Problems to samples.jsonl: what is asked, what is kept, and how a killed run goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from xft.errors import FetchError
from xft.eval.benchmark import Benchmark, Problem, Sample
from xft.eval.generate.backend import Answer, Ask, Backend, Sampling, Unit
from xft.progress import track
from xft.stage import write_lines

SAMPLES = "samples.jsonl"
TRIAL = 8
"""A server that refuses so many problems, the first ones, before it has answered any, is asked no more."""

Key = tuple[str, int]


def generate(
    backend: Backend,
    benchmark: Benchmark,
    problems: Sequence[Problem],
    out: Path,
    *,
    sampling: Sampling,
    known: dict[Ask, Answer],
    label: str,
) -> None:
    """Write `out`/samples.jsonl: the samples 0 to n-1 of each problem, in the problems' order.

    What `known` holds is not asked again, and the new answers are added to it: HumanEval and HumanEval+ put nearly all
    problems in the same words. A killed run goes on with the first unit of the back end that is not whole, so that its
    texts are those of an uninterrupted one; while it runs, the lines have the order in which they were made. What a
    server refuses to answer is the empty answer, and is asked again after a kill.

    Raises:
        FetchError: a server can't be reached, or refuses whatever it is asked; what it has answered is kept.
    """
    asks = {
        Ask(task_id=problem.task_id, sample=sample, request=request): problem
        for problem in problems
        for request in (benchmark.request(problem, backend.style),)
        for sample in range(sampling.n)
    }

    def line(ask: Ask, answer: Answer) -> Sample:
        refused = answer.finish == "refused"
        text = "" if refused else answer.text
        return {
            "task_id": ask.task_id,
            "sample": ask.sample,
            "completion": text,
            "code": benchmark.extract(asks[ask], text, backend.style),
            "finish": answer.finish,
            **({"refusal": answer.text} if refused else {}),
        }

    path = out / SAMPLES
    units = backend.units([ask for ask in asks if ask not in known])
    samples = {_key(ask): line(ask, known[ask]) for ask in asks if ask in known} | _whole_units(path, units)
    if len(samples) < len(asks):
        missing = [unit for unit in units if _key(unit[0]) not in samples]
        write_lines(path, map(json.dumps, samples.values()))  # without the rest of a line that a kill cut short
        trial = set(list(dict.fromkeys(ask.task_id for ask in asks))[:TRIAL])
        if any(sample["finish"] != "refused" for sample in samples.values()):
            trial.clear()
        with track(label, len(asks), done=len(samples)) as advance, path.open("a", encoding="utf-8") as sink:
            for ask, answer in backend.complete(missing, sampling):
                samples[_key(ask)] = line(ask, answer)
                if answer.finish == "refused":
                    if trial == {ask.task_id}:
                        raise FetchError(
                            f"{benchmark.name}: the server refused the first problems, all of them, the last: "
                            f"{answer.text}; correct the model's name or the server's settings and run the same command"
                        )
                    trial.discard(ask.task_id)
                else:
                    trial.clear()
                    sink.write(json.dumps(samples[_key(ask)]) + "\n")
                    sink.flush()
                advance(1)
    for ask in asks:
        sample = samples[_key(ask)]
        known[ask] = Answer(text=str(sample.get("refusal", sample["completion"])), finish=sample["finish"])
    write_lines(path, (json.dumps(samples[_key(ask)]) for ask in asks))


def _key(ask: Ask) -> Key:
    return ask.task_id, ask.sample


def _whole_units(path: Path, units: Sequence[Unit]) -> dict[Key, Sample]:
    """Read what an earlier run left, as far as whole units go."""
    found: dict[Key, Sample] = {}
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            sample = json.loads(line)
            sample["completion"], sample["code"], sample["finish"]
            found[sample["task_id"], sample["sample"]] = sample
        except (ValueError, KeyError, TypeError):  # a line that a kill cut short
            continue
    whole = [unit for unit in units if all(_key(ask) in found for ask in unit)]
    return {_key(ask): found[_key(ask)] for unit in whole for ask in unit}
