"""The Trainer's gradients against a loop written by hand, and its refusal to step on a gradient that is not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoModelForCausalLM, TrainerCallback

from xft.errors import DivergedError
from xft.moe.layer import Router
from xft.recipe import TuneConfig
from xft.tune.callbacks import DivergenceGuard
from xft.tune.dataset import IGNORED, Collator, OrderedRows, Row
from xft.tune.trainer import ResponseTrainer, devices_used, training_arguments
from xft.tune.tune import TuneJob, _processes

BALANCE = 0.5  # large, so that a wrong balance gradient can't hide


def rows() -> list[Row]:
    generator = torch.Generator().manual_seed(5)
    lengths, prompts = (9, 14, 21, 30), (3, 6, 5, 20)
    return [
        Row(tokens=torch.randint(4, 260, (length,), generator=generator).tolist(), prompt=prompt, cut=False)
        for length, prompt in zip(lengths, prompts, strict=True)
    ]


class Gradients(TrainerCallback):
    """Copy what the optimiser is about to use."""

    def __init__(self) -> None:
        self.taken: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.taken = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trainer_of(
    model: Any, out: Path, *, pad: int = 0, data: list[Row] | None = None, **options: Any
) -> ResponseTrainer:
    config = TuneConfig.model_validate(
        {"batch": 4, "micro_batch": 4, "clip": 0.0, "schedule": "constant", "warmup": 0.0, **options}
    )
    arguments = training_arguments(config, out, lr=config.lr, steps=1, processes=1, bf16=False, seed=0)
    data = data or rows()
    return ResponseTrainer(
        model=model, args=arguments, train_dataset=OrderedRows(data, list(range(len(data)))),
        data_collator=Collator(pad), config=config,
    )  # fmt: skip


def test_a_process_that_sees_several_gpus_uses_one_and_keeps_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("is_available", True), ("device_count", 2), ("set_device", None)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    config = TuneConfig(batch=6, micro_batch=3)
    arguments = training_arguments(config, tmp_path, lr=config.lr, steps=1, processes=1, bf16=False, seed=0)
    AcceleratorState._reset_state(reset_partial_state=True)  # it remembers the device
    assert arguments.device.type == "cuda"
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 3)


def trainers_gradients(folder: Path, out: Path, **options: Any) -> tuple[dict[str, Tensor], ResponseTrainer]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trainer = trainer_of(model, out, **options)
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    return gradients.taken, trainer


def cv_squared(values: Tensor) -> Tensor:
    return values.var() / values.mean() ** 2


def gradients_by_hand(folder: Path, micro_batch: int, balance: float) -> dict[str, Tensor]:
    """Cross-entropy over full logits and the balance loss from the routers' logits, without anything of the trainer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    logits_of_layers: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, Router):
            module.register_forward_hook(lambda _m, _args, output: logits_of_layers.append(output.logits_TR))
    data = rows()
    trained = sum(row.trained for row in data)
    for start in range(0, len(data), micro_batch):
        batch = Collator(0)(data[start : start + micro_batch])
        logits_of_layers.clear()
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        targets = batch["labels"][:, 1:].flatten()
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum") / trained
        real = batch["attention_mask"].flatten().bool()
        terms = []
        for router_logits in logits_of_layers:
            top = router_logits[real].softmax(-1).topk(2)
            kept = F.one_hot(top.indices, router_logits.shape[1])
            importance, load = (kept * top.values[..., None]).sum((0, 1)), kept.sum((0, 1)).float()
            terms.append(cv_squared(importance) + cv_squared(load))
        if terms:
            loss = loss + balance * sum(terms) / len(terms) / (len(data) // micro_batch)
        loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("micro_batch", [4, 1])
def test_a_mixtures_gradients_equal_those_of_a_loop_by_hand(
    quiet_moe: Path, tmp_path: Path, micro_batch: int, checkpointing: bool
) -> None:
    ours, _ = trainers_gradients(
        quiet_moe, tmp_path, micro_batch=micro_batch, balance=BALANCE, gradient_checkpointing=checkpointing
    )
    plain = gradients_by_hand(quiet_moe, micro_batch, BALANCE)
    assert ours.keys() == plain.keys()
    assert sum(".router." in name for name in ours) == 4
    for name in plain:
        torch.testing.assert_close(
            ours[name], plain[name], rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_balance_loss_reaches_the_router(quiet_moe: Path) -> None:
    name = "model.layers.0.mlp.router.scores.weight"
    without, with_it = gradients_by_hand(quiet_moe, 4, 0.0)[name], gradients_by_hand(quiet_moe, 4, BALANCE)[name]
    assert (without - with_it).abs().max() > 0.01 * with_it.abs().max()


@pytest.mark.parametrize("micro_batch", [4, 1])
def test_a_dense_models_gradients_equal_those_of_a_loop_by_hand(
    tiny_dense: Path, tmp_path: Path, micro_batch: int
) -> None:
    ours, _ = trainers_gradients(tiny_dense, tmp_path, micro_batch=micro_batch)
    for name, gradient in gradients_by_hand(tiny_dense, micro_batch, 0.0).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6)


def test_padding_counts_for_nothing(quiet_moe: Path, tmp_path: Path) -> None:
    ours, trainer = trainers_gradients(quiet_moe, tmp_path, balance=BALANCE, pad=0)
    other, _ = trainers_gradients(quiet_moe, tmp_path, balance=BALANCE, pad=77)
    for name in ours:
        torch.testing.assert_close(ours[name], other[name], rtol=1e-4, atol=1e-6)
    line = trainer.measure(1.0, 4)
    assert (line["positions"], line["tokens"]) == (9 + 14 + 21 + 30, 6 + 8 + 16 + 10)
    assert [sum(load) for load in line["experts"]["load"]] == pytest.approx([1.0, 1.0], abs=1e-3)


def test_the_adafactor_step_moves_a_gates_weight_against_its_gradient(quiet_moe: Path, tmp_path: Path) -> None:
    before = AutoModelForCausalLM.from_pretrained(quiet_moe, dtype=torch.float32).state_dict()
    gradients, trainer = trainers_gradients(quiet_moe, tmp_path, balance=BALANCE, lr=1e-3)
    assert trainer.model is not None
    after = trainer.model.state_dict()
    for name in (n for n in gradients if ".router." in n or ".experts." in n):
        step = after[name] - before[name]
        assert (step * gradients[name]).sum() < 0
        assert step.abs().max() > 1e-5


def unchanged(model: Any, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tiny_dense: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_dense, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight[5, 3] = torch.inf
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = trainer_of(model, tmp_path)
    with pytest.raises(DivergedError, match=r"step 1: the loss is (nan|inf); lower tune.lr"):
        trainer.train()
    assert unchanged(model, before)


def test_an_infinite_gradient_stops_before_the_weights_change(tiny_dense: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_dense, dtype=torch.float32)
    model.model.layers[1].mlp.up_proj.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = trainer_of(model, tmp_path, clip=1.0)
    trainer.add_callback(DivergenceGuard())
    with pytest.raises(DivergedError, match=r"step 1: the gradient's norm is (nan|inf); lower tune.lr"):
        trainer.train()
    assert unchanged(model, before)


def test_a_batch_that_micro_batches_do_not_divide_is_refused() -> None:
    with pytest.raises(ValidationError, match="batch=6 is no multiple of micro_batch=4; choose a multiple of 4"):
        TuneConfig(batch=6, micro_batch=4)


@pytest.mark.parametrize(
    ("batch", "visible", "used"), [(24, 0, 1), (24, 1, 1), (24, 3, 3), (24, 5, 3), (24, 8, 6), (4, 8, 1)]
)
def test_a_batch_is_shared_out_to_as_many_devices_as_divide_it(batch: int, visible: int, used: int) -> None:
    assert devices_used(TuneConfig(batch=batch, micro_batch=4), visible) == used


def test_devices_that_a_batch_leaves_idle_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = TuneConfig(batch=3, micro_batch=3).model_dump()
    job = TuneJob(model="m", pairs="p", out="o", prompt="chatml", epochs=1, lr=1.0, seed=0, config=config)
    assert _processes(job) == 1
    assert capsys.readouterr().err.startswith("tune: on 1 of 2 GPUs: tune.batch=3 in parts of tune.micro_batch=3")


@pytest.mark.parametrize("gate", ["mlp", "tied"])
def test_the_choice_bias_moves_against_the_load(gate: Any, tiny_dense: Path, tmp_path: Path) -> None:
    """DeepSeek-V3: after a step an expert above the mean load loses a thousandth, one below gains it.

    A router of all layers has one bias, which heeds the load of all layers.
    """
    from xft.recipe import UpcycleConfig
    from xft.tune.callbacks import BiasBalance
    from xft.upcycle import upcycle

    folder = tmp_path / "moe"
    folder.mkdir()
    config = UpcycleConfig(experts=4, active=3, router="deepseek-sigmoid", gate=gate, gate_noise=False)
    upcycle(tiny_dense, folder, config, seed=1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trainer = trainer_of(model, tmp_path / "out", balance=0.0)
    balance = BiasBalance(trainer)
    seen: list[Tensor] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert trainer.health.counts is not None
            seen.append(trainer.health.counts.clone())

    trainer.add_callback(balance)
    trainer.add_callback(Watch())
    trainer.train()
    routers = [module for module in model.modules() if isinstance(module, Router)]
    assert len(seen) == 1
    counts_LR = seen[0].float() if gate == "mlp" else seen[0].float().sum(0, keepdim=True)
    assert len(seen[0]) == 2
    for router, counts_R in zip(routers, counts_LR, strict=True):
        assert router.bias_R is not None
        torch.testing.assert_close(router.bias_R, 1e-3 * (counts_R.mean() - counts_R).sign())
        assert router.bias_R.abs().max() > 0


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_expert_averaging_moves_each_expert_towards_the_mean_of_the_others(share: float, tiny_moe: Path) -> None:
    from xft.tune.callbacks import ExpertAveraging

    model = AutoModelForCausalLM.from_pretrained(tiny_moe, dtype=torch.float32)
    stack_R = model.model.layers[1].mlp.experts.up_proj
    before_R, shared = stack_R.detach().clone(), model.model.layers[1].mlp.shared_expert.up_proj.weight.clone()
    ExpertAveraging(share).on_step_end(None, None, None, model=model)
    for number, expert in enumerate(stack_R):
        others = torch.stack([before_R[other] for other in range(3) if other != number]).mean(0)
        torch.testing.assert_close(expert, (1 - share) * before_R[number] + share * others)
    torch.testing.assert_close(stack_R.mean(0), before_R.mean(0))
    assert torch.equal(model.model.layers[1].mlp.shared_expert.up_proj.weight, shared)


def test_the_z_loss_and_the_kind_of_balance_loss_reach_the_routers(quiet_moe: Path, tmp_path: Path) -> None:
    gradients = {
        name: trainers_gradients(quiet_moe, tmp_path / name, **options)[0]
        for name, options in {
            "none": {"balance": 0.0},
            "z": {"balance": 0.0, "z_loss": 1.0},
            "switch": {"balance": 1.0, "balance_loss": "switch"},
            "sequence": {"balance": 1.0, "balance_loss": "sequence"},
        }.items()
    }
    name = "model.layers.1.mlp.router.scores.weight"
    kinds = [gradient[name] for gradient in gradients.values()]
    for number, one in enumerate(kinds):
        for other in kinds[number + 1 :]:
            assert float((one - other).abs().max()) > 1e-4
