"""Tuning as a stage: it learns, it resumes to the same bits, its output is a whole checkpoint without pickles."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from xft.errors import CheckpointError, DivergedError, RecipeError
from xft.export import export
from xft.recipe import UpcycleConfig
from xft.stage import Meter
from xft.tune.callbacks import MetricsFile, ResumePoints
from xft.tune.tune import TuneJob, tune
from xft.upcycle import upcycle

CONFIG = {
    "batch": 4, "micro_batch": 2, "max_length": 256, "warmup": 0.1, "precision": "fp32", "checkpoint_minutes": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "train.jsonl"
    lines = [
        {"instruction": f"Add {n}.", "response": f"def add(a):\n    return a + {n}", "source": "", "meta": {}}
        for n in range(12)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def job_of(model: Path, pairs: Path, out: Path, *, epochs: int = 6, lr: float = 3e-3, **config: Any) -> TuneJob:
    out.mkdir(exist_ok=True)
    return TuneJob(
        model=str(model), pairs=str(pairs), out=str(out), prompt="chat", epochs=epochs, lr=lr, seed=3,
        config=CONFIG | config,
    )  # fmt: skip


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def tied_moe(tiny_dense: Path, perturbed: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters behind one gate for all layers."""
    folder = tmp_path_factory.mktemp("tied") / "moe"
    folder.mkdir()
    config = UpcycleConfig(experts=4, active=3, layout="adapter", rank=2, gate="tied", router="deepseek-sigmoid")
    upcycle(tiny_dense, folder, config, seed=1)
    return perturbed(folder)


@pytest.fixture(scope="module", params=["dense", "mixture", "tied"])
def whole(
    request: pytest.FixtureRequest, tiny_dense: Path, tiny_moe: Path, tied_moe: Path, pairs: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[TuneJob, Path]:  # fmt: skip
    """An uninterrupted tuning of 18 steps; mixtures have gate noise, so random states count."""
    model = {"dense": tiny_dense, "mixture": tiny_moe, "tied": tied_moe}[request.param]
    out = tmp_path_factory.mktemp(f"whole-{request.param}") / "out"
    job = job_of(model, pairs, out)
    meter = Meter()
    tune(job, meter)
    assert meter.tokens == sum(len(json.loads(line)["response"]) + 1 for line in pairs.read_text().splitlines()) * 6
    assert meter.flops is not None
    assert meter.flops > 0
    assert meter.dtype == "float32"
    return job, out


def test_the_loss_falls_and_each_step_is_logged_once(whole: tuple[TuneJob, Path]) -> None:
    lines = metrics(whole[1])
    assert [line["step"] for line in lines] == list(range(1, 19))
    losses = [line["loss"] for line in lines]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert lines[-1]["epoch"] == 6
    assert lines[-1]["lr"] < max(line["lr"] for line in lines)
    if "experts" in lines[0]:
        assert all(len(line["experts"]["load"]) == 2 and line["balance"] >= 0 for line in lines)


def test_the_output_is_a_whole_checkpoint_without_pickles(whole: tuple[TuneJob, Path]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    job, out = whole
    names = {path.name for path in out.rglob("*") if path.is_file()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "summary.json"} <= names
    assert [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))] == []
    assert not (out / "resume").exists()
    trained, before = weights(out), weights(Path(job.model))
    assert trained.keys() == before.keys()
    assert all(tensor.dtype == torch.float32 for tensor in trained.values())
    assert all(not torch.equal(trained[name], before[name]) for name in trained if "proj" in name)
    loaded = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trained.items())
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(job.model).chat_template


def killed(job: TuneJob, spec: Path, after: int, by: signal.Signals = signal.SIGKILL) -> int:
    """Tune in a second process and end it by a signal once it has logged some steps; return its exit status."""
    spec.write_text(json.dumps(asdict(job)))
    log = Path(job.out) / "metrics.jsonl"
    process = subprocess.Popen([sys.executable, "-m", "xft.tune.tune", str(spec)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.read_text().count("\n") >= after:
            process.send_signal(by)
            break
        time.sleep(0.005)
    return process.wait(timeout=30)


@pytest.mark.parametrize(
    "whole", ["mixture", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("dense", "tied"))], indirect=True
)
def test_killed_and_resumed_equals_uninterrupted_to_the_bit(whole: tuple[TuneJob, Path], tmp_path: Path) -> None:
    job, out = whole
    first = tmp_path / "killed"
    first.mkdir()
    assert killed(replace(job, out=str(first)), tmp_path / "job.json", after=4) == -signal.SIGKILL
    assert not (first / "model.safetensors").exists()
    (point,) = [path for path in sorted((first / "resume").iterdir()) if (path / "trainer_state.json").exists()][-1:]

    half_written = tmp_path / "half-written"
    shutil.copytree(first, half_written)
    step = int(point.name.rsplit("-", 1)[1])
    newer = half_written / "resume" / f"checkpoint-{step + 1}"
    shutil.copytree(half_written / "resume" / point.name, newer, dirs_exist_ok=True)
    (newer / "trainer_state.json").unlink()
    with (half_written / "metrics.jsonl").open("a") as sink:
        sink.write('{"step": 5, "lo')

    wanted = weights(out)
    for folder in (first, half_written):
        tune(replace(job, out=str(folder)), Meter())
        resumed = weights(folder)
        assert resumed.keys() == wanted.keys()
        assert all(torch.equal(resumed[name], wanted[name]) for name in wanted)
        assert [line["step"] for line in metrics(folder)] == list(range(1, 19))
        for ours, theirs in zip(metrics(folder), metrics(out), strict=True):
            assert {key: ours[key] for key in ("loss", "grad_norm", "lr", "tokens", "positions")} == {
                key: theirs[key] for key in ("loss", "grad_norm", "lr", "tokens", "positions")
            }
        summaries = [json.loads((path / "summary.json").read_text()) for path in (folder, out)]
        assert summaries[0] == summaries[1]


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("whole", ["mixture"], indirect=True)
def test_an_interruption_saves_a_resume_point_first(
    whole: tuple[TuneJob, Path], tmp_path: Path, by: signal.Signals
) -> None:
    job, out = whole
    folder = tmp_path / "out"
    folder.mkdir()
    job = replace(job, out=str(folder), config=job.config | {"checkpoint_minutes": 60})
    assert killed(job, tmp_path / "job.json", after=3, by=by) == 130
    steps = len(metrics(folder))
    assert [path.name for path in (folder / "resume").iterdir()] == [f"checkpoint-{steps}"]
    tune(job, Meter())
    assert [line["step"] for line in metrics(folder)] == list(range(1, 19))
    assert all(torch.equal(tensor, weights(out)[name]) for name, tensor in weights(folder).items())


@pytest.mark.parametrize("step", [5, 18])
@pytest.mark.parametrize("whole", ["mixture"], indirect=True)
def test_an_interruption_in_any_step_loses_nothing(
    whole: tuple[TuneJob, Path], step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, out = whole
    job = replace(job, out=str(tmp_path), config=job.config | {"checkpoint_minutes": 60})
    begin = MetricsFile.on_step_begin

    def begin_and_interrupt(self: MetricsFile, args: Any, state: Any, control: Any, **rest: Any) -> None:
        begin(self, args, state, control, **rest)
        if state.global_step == step - 1:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "on_step_begin", begin_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            tune(job, Meter())
    assert signal.getsignal(signal.SIGTERM) is before
    assert [path.name for path in (tmp_path / "resume").iterdir()] == [f"checkpoint-{step}"]
    tune(job, Meter())
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, 19))
    assert all(torch.equal(tensor, weights(out)[name]) for name, tensor in weights(tmp_path).items())


def test_a_second_interruption_ends_at_once() -> None:
    points = ResumePoints(60)
    with points.heeding_signals():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_resume_point_that_is_cut_short_alone_means_from_the_start(
    whole: tuple[TuneJob, Path], tmp_path: Path
) -> None:
    job, out = whole
    folder = tmp_path / "cut"
    (folder / "resume" / "checkpoint-7").mkdir(parents=True)
    (folder / "resume" / "checkpoint-7" / "model.safetensors").write_bytes(b"half")
    tune(replace(job, out=str(folder)), Meter())
    assert all(torch.equal(tensor, weights(out)[name]) for name, tensor in weights(folder).items())


def test_a_dense_model_keeps_bf16_and_says_what_rounding_cost(tiny_bf16: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tune(job_of(tiny_bf16, pairs, out, epochs=1), Meter())
    trained = weights(out)
    assert {tensor.dtype for tensor in trained.values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    largest = max(float(tensor.float().abs().max()) for tensor in trained.values())
    assert 0 < json.loads((out / "summary.json").read_text())["rounding_error"] <= largest * 2**-8


def test_a_mixture_of_a_bf16_base_is_written_in_fp32(tiny_bf16: Path, pairs: Path, tmp_path: Path) -> None:
    mixture, out = tmp_path / "moe", tmp_path / "out"
    mixture.mkdir()
    upcycle(tiny_bf16, mixture, UpcycleConfig(experts=3, active=2), seed=0)
    assert {tensor.dtype for tensor in weights(mixture).values()} == {torch.bfloat16}
    tune(job_of(mixture, pairs, out, epochs=1), Meter())
    assert {tensor.dtype for tensor in weights(out).values()} == {torch.float32}
    config = json.loads((out / "config.json").read_text())
    assert (config["dtype"], config["xft"]["base_dtype"]) == ("float32", "bfloat16")


@pytest.mark.parametrize(("train", "moving"), [("experts", (".experts.", ".router.")), ("routers", (".router.",))])
def test_what_is_frozen_stays_to_the_bit(
    train: str, moving: tuple[str, ...], tiny_dense: Path, pairs: Path, tmp_path: Path
) -> None:
    mixture, out = tmp_path / "moe", tmp_path / "out"
    mixture.mkdir()
    gate: Any = {"experts": "mlp", "routers": "tied"}[train]
    upcycle(tiny_dense, mixture, UpcycleConfig(experts=4, active=3, layout="adapter", rank=2, gate=gate), seed=0)
    if train == "routers":  # equal experts give a router nothing to learn from but balance
        tensors = weights(mixture)
        for name in [name for name in tensors if name.endswith("_b")]:
            tensors[name] = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(len(name)))
        save_file(tensors, mixture / "model.safetensors", metadata={"format": "pt"})
    flops = {}
    for key in ("all", train):
        meter = Meter()
        tune(job_of(mixture, pairs, tmp_path / key, epochs=2, train=key), meter)
        flops[key] = meter.flops
    before, after = weights(mixture), weights(tmp_path / train)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(any(part in name for part in moving) for name in moved)
    assert {part for part in moving if any(part in name for name in moved)} == set(moving)
    everything = weights(tmp_path / "all")
    assert not torch.equal(before["model.embed_tokens.weight"], everything["model.embed_tokens.weight"])
    assert flops[train] < flops["all"]  # type: ignore[operator]
    assert flops[train] > 2 / 3 * flops["all"]  # type: ignore[operator]
    out.mkdir()
    assert export(tmp_path / train, out) == "peft"
    with pytest.raises(CheckpointError, match="its FFNs were trained too"):
        export(tmp_path / "all", out)


def test_routed_experts_learn_at_a_rate_of_their_own(tiny_moe: Path, pairs: Path, tmp_path: Path) -> None:
    """AdamW's first step moves a weight by its rate, whatever the gradient."""
    once = {"batch": 12, "micro_batch": 12, "optimizer": "adamw", "schedule": "constant", "warmup": 0.0, "clip": 0.0}
    before = weights(tiny_moe)
    for name, rate in {"slow": 1e-4, "fast": 4e-2}.items():
        tune(job_of(tiny_moe, pairs, tmp_path / name, epochs=1, lr=1e-3, routed_lr=rate, **once), Meter())
        for key, after in weights(tmp_path / name).items():
            step = (after - before[key]).abs().max()
            routed = ".experts." in key
            assert step <= 1.01 * (rate if routed else 1e-3) + 1e-6, key
            assert step >= 0.5 * (rate if routed else 1e-3) or not key.endswith("proj"), key
        assert any(".experts." in key for key in before)
    assert [line["lr"] for line in metrics(tmp_path / "fast")] == [1e-3]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_expert_learns_from_its_slice_alone(
    checkpointing: bool, tiny_dense: Path, pairs: Path, tmp_path: Path
) -> None:
    """Other responses at odd places change what the second expert learns, and not a bit of the first."""
    (tmp_path / "moe").mkdir()
    upcycle(tiny_dense, tmp_path / "moe", UpcycleConfig(experts=2, active=1, router="slices"), seed=1)
    lines = [json.loads(line) for line in pairs.read_text().splitlines()]
    odd = [line | ({"response": line["response"].replace("+", "-")} if at % 2 else {}) for at, line in enumerate(lines)]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(line) + "\n" for line in odd))
    config = {"train": "experts", "gradient_checkpointing": checkpointing, "optimizer": "adamw", "clip": 0.0}
    for name, data in {"one": pairs, "two": tmp_path / "odd.jsonl"}.items():
        tune(job_of(tmp_path / "moe", data, tmp_path / name, epochs=1, batch=12, micro_batch=1, **config), Meter())
    one, two, before = (weights(tmp_path / name) for name in ("one", "two", "moe"))
    stacks = [name for name in before if ".experts." in name]
    assert stacks
    for name in stacks:
        assert torch.equal(one[name][0], two[name][0])
        assert (one[name][1] - two[name][1]).abs().max() > 1e-3
        assert (one[name] - before[name]).abs().amax((1, 2)).min() > 1e-3
    assert metrics(tmp_path / "one")[-1]["experts"]["load"] == [[0.5, 0.5]] * 2


def test_a_router_without_a_gate_can_not_be_all_that_learns(tiny_dense: Path, pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "moe").mkdir()
    upcycle(tiny_dense, tmp_path / "moe", UpcycleConfig(experts=2, active=1, router="slices"), seed=1)
    with pytest.raises(RecipeError, match="leaves nothing to train: its router has no gate"):
        tune(job_of(tmp_path / "moe", pairs, tmp_path / "out", train="routers"), Meter())


def test_divergence_leaves_no_checkpoint(tiny_dense: Path, pairs: Path, tmp_path: Path) -> None:
    job = replace(job_of(tiny_dense, pairs, tmp_path / "out", lr=1e30, clip=0.0), section="sft")
    with pytest.raises(DivergedError, match=r"step \d+: .* lower sft.lr"):
        tune(job, Meter())
    assert not (tmp_path / "out" / "model.safetensors").exists()


KINDS: dict[str, dict[str, Any]] = {
    "mixture": {},
    "averaged": {"average_experts": 0.2},
    "tied gate": {"gate": "tied"},
    "adapters": {"gate": "tied", "layout": "adapter", "rank": 2, "train": "experts"},
    "slices": {"router": "slices"},
    "choice bias": {"router": "deepseek-sigmoid"},
    "tied choice bias": {"router": "deepseek-sigmoid", "gate": "tied"},
}
"""Mixtures, with settings of `upcycle` and `tune`."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", *KINDS])
def test_two_processes_equal_one(
    kind: str, tiny_dense: Path, pairs: Path, perturbed: Callable[..., Path], tmp_path: Path
) -> None:
    model, config = tiny_dense, {}
    if kind != "dense":
        model = tmp_path / "moe"
        model.mkdir()
        made = {key: value for key, value in KINDS[kind].items() if key in UpcycleConfig.model_fields}
        config = {key: value for key, value in KINDS[kind].items() if key not in made}
        given = {"experts": 4, "active": 3, "gate_noise": False} | made
        upcycle(tiny_dense, model, UpcycleConfig.model_validate(given), seed=1)
        perturbed(model)
    one, two, resumed = (tmp_path / name for name in ("one", "two", "resumed"))
    # A balance loss is a ratio over one forward pass, so it differs by construction when batches are cut differently.
    tune(job_of(model, pairs, one, epochs=2, micro_batch=2, balance=0.0, **config), Meter())
    os.environ.pop("WORLD_SIZE", None)
    tune(job_of(model, pairs, two, epochs=2, micro_batch=2, balance=0.0, **config), Meter(), processes=2)
    assert [json.loads((out / "summary.json").read_text())["processes"] for out in (one, two)] == [1, 2]
    same_tuning(one, two, model, still=config.get("train") == "experts")
    if kind == "choice bias":
        job = job_of(model, pairs, resumed, epochs=2, micro_batch=2, balance=0.0)
        assert killed(job, tmp_path / "job.json", after=2) == -signal.SIGKILL
        cut_short = resumed / "resume" / "checkpoint-6"
        cut_short.mkdir()
        tune(job, Meter(), processes=2)
        assert not cut_short.exists()
        same_tuning(one, resumed, model)


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_a_command_that_was_ended(
    by: signal.Signals, tiny_dense: Path, pairs: Path, tmp_path: Path
) -> None:
    job = job_of(tiny_dense, pairs, tmp_path / "out", epochs=500, micro_batch=2, checkpoint_minutes=60)
    script = (
        "import json, signal, sys; from pathlib import Path; from xft.stage import Meter; from xft.tune.tune import *;"
        "signal.signal(signal.SIGTERM, signal.default_int_handler);"  # as the command line does
        "tune(TuneJob(**json.loads(sys.argv[1])), Meter(), processes=2)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, json.dumps(asdict(job))], stderr=subprocess.DEVNULL)

    def workers() -> int:
        lines = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
        return sum(str(tmp_path).encode() in line and b"xft.tune.tune" in line for line in lines)

    def within(seconds: float, done: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + seconds
        while not done() and time.monotonic() < deadline:
            time.sleep(0.1)
        return done()

    log = tmp_path / "out" / "metrics.jsonl"
    assert within(300, log.exists)
    assert workers() >= 3  # the launcher and two workers
    process.send_signal(by)
    process.wait(60)
    assert within(60, lambda: workers() == 0)
    saved = [path.name for path in (tmp_path / "out" / "resume").glob("checkpoint-*")]
    assert by == signal.SIGKILL or saved == [f"checkpoint-{len(metrics(tmp_path / 'out'))}"]


def same_tuning(one: Path, two: Path, model: Path, *, still: bool = False) -> None:
    """Compare weights and logs; `still`: some weights are frozen."""
    wanted, ours = weights(one), weights(two)
    before = weights(model)
    for name in wanted:
        moved = (wanted[name] - before[name]).abs().max()
        assert (ours[name] - wanted[name]).abs().max() <= 1e-2 * moved + 1e-6, name
        assert moved > 0 or still, name
        assert not name.endswith("bias_R") or torch.equal(ours[name], wanted[name])
    for left, right in zip(metrics(two), metrics(one), strict=True):
        assert (left["tokens"], left["positions"]) == (right["tokens"], right["positions"])
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-4)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)
        if "experts" in right:
            assert left["experts"]["dead"] == right["experts"]["dead"]
            for key in ("load", "shared_weight"):
                torch.testing.assert_close(*(torch.tensor(line["experts"][key]) for line in (left, right)),
                                           rtol=0, atol=1.5e-4)  # fmt: skip
