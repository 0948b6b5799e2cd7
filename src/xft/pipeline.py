"""The job `run`: all stages of a recipe in one run directory, each done once, interrupted and resumed at will.

base ──► sft ─────────────────────────────► eval/sft
  │  └─► upcycle ─► moe ─┬────────────────► eval/moe
  │                      ├─► merge/uniform ► eval/uniform
data ────────────────────┴─► merge/learned ► eval/xft

With `sft.soup` further SFT runs, soup/2 and so on, and their average with the first: soup/mean ► eval/soup. With
`upcycle.experts_from: soup` the mixture is made of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from xft.base import resolve_base
from xft.checkpoint import COMPANIONS, Checkpoint, require_disk
from xft.device import compute_dtype
from xft.errors import DataError, FetchError, RecipeError
from xft.graph import Node, bring_up_to_date, run_folder, to_make
from xft.recipe import IDLE, MIXTURES_ONLY, BenchmarkConfig, EvalConfig, Recipe
from xft.stage import Meter, folder_digest, read_manifest

SEEDS_APART = 1_000_003
"""From one training seed of a soup to the next: further than seeds that people choose lie from one another."""


def run(recipe: Recipe, out: Path, *, redo: bool, confirm: Callable[[str], bool], say: Callable[[str], None]) -> Path:
    """Bring a run directory up to date with a recipe; return the report's path.

    Raises:
        RunError: another process is at it, `out` holds something else, or redoing needs the user's word.
        UnknownNameError: a name in the recipe that no registry has; found before anything is written.
    """
    look_up_names(recipe)
    with run_folder(out):
        nodes = graph(recipe, out)
        bring_up_to_date(
            nodes, out, recipe, redo=redo, confirm=confirm, say=say, prepare=lambda: _prepare(recipe, nodes, out)
        )
        from xft.report import write_report

        return write_report(out)


def _prepare(recipe: Recipe, nodes: Sequence[Node], out: Path) -> None:
    """See that the work can go through to its end."""
    from xft.eval.evaluate import require_scoring

    left = to_make(nodes, out, recipe.seed)
    require_disk(out, space_needed(recipe, left))
    if any(name.startswith("eval/") for name in left):
        require_scoring(recipe.eval.benchmarks)


def space_needed(recipe: Recipe, left: Mapping[str, int]) -> int:
    """Return the bytes that stages will write, resume points included, beyond those that `left` says are there.

    Raises:
        CheckpointError: an FFN tensor of the base is missing.
        RecipeError: the base can't be upcycled as the recipe says.
    """
    from xft.upcycle import plan_mixture

    base = Checkpoint(resolve_base(recipe.base))
    dense = sum(torch.Size(base.shape(name)).numel() for name in base.names())
    origins = [Checkpoint(resolve_base(model)) for model in recipe.upcycle.origins]
    plan = plan_mixture(base, recipe.upcycle, recipe.seed, origins)
    mixture = sum(torch.Size(tensor.shape).numel() for tensor in plan)
    stored = base.dtype(base.family.embedding).itemsize
    master = 4  # bytes of an fp32 weight
    members = [f"soup/{number}" for number in range(2, recipe.sft.soup + 1)]
    needs = dict.fromkeys(members, dense * (stored + master)) | ({"soup/mean": dense * stored} if members else {})
    needs |= {
        "sft": dense * (stored + master), "upcycle": mixture * stored, "moe": mixture * 2 * master,
        **{f"merge/{method}": dense * stored for method in ("uniform", "learned", *recipe.merge.also)},
    }  # fmt: skip
    return sum(max(0, needs.get(name, 0) - there) for name, there in left.items())


def look_up_names(recipe: Recipe) -> None:
    """Look up what the schema leaves open, so that a typo does not end the run after hours.

    Raises:
        UnknownNameError: a name that no registry has.
        RecipeError: settings that don't fit one another.
    """
    from xft.eval.benchmarks import BENCHMARKS
    from xft.merge.methods import MERGE_METHODS, refuse_unheeded, refuse_unweighed
    from xft.moe.balance import BALANCE_LOSSES
    from xft.moe.layouts.split import refuse_dividing
    from xft.moe.routers import ROUTERS, refuse_idle_gate, split_counts
    from xft.prompts import PROMPTS
    from xft.upcycle import refuse_idle

    _ = BALANCE_LOSSES[recipe.tune.balance_loss]
    upcycle = recipe.upcycle
    routed, _ = split_counts(
        upcycle.router, upcycle.experts, upcycle.active, shared=upcycle.shared, parts=upcycle.parts
    )
    if upcycle.layout == "split":
        refuse_dividing(upcycle.router)
    refuse_idle(recipe.sft.soup if upcycle.from_soup else len(upcycle.origins), routed)
    for method in recipe.merge.also:
        if MERGE_METHODS[method].weights == "learned" or method == "uniform":
            raise RecipeError(f"merge.also: {method} is made in every run; name other methods")
    refuse_unheeded(recipe.merge, ["learned", "uniform", *recipe.merge.also])
    rule = ROUTERS[upcycle.router]
    if recipe.tune.train == "routers" and not rule.gated:
        raise RecipeError(f"tune.train=routers leaves nothing to train: the router {upcycle.router} has no gate")
    refuse_idle_gate(upcycle.router, upcycle, recipe.tune)
    refuse_unweighed(recipe.merge, "merge", weighs_shared=rule.shared and upcycle.layout != "split")
    _ = [BENCHMARKS[entry.name] for entry in recipe.eval.benchmarks]
    _ = [PROMPTS[style] for style in (recipe.prompt, *recipe.eval.base_prompts) if style not in ("auto", "completion")]


def graph(recipe: Recipe, out: Path) -> list[Node]:
    """Return the stages in an order in which they can be done."""
    from xft.data.prepare import HELDOUT, TRAIN, prepare, sources_digest
    from xft.data.sources import source_name
    from xft.merge.methods import MERGE_METHODS

    base_folder = resolve_base(recipe.base)
    tune = recipe.tune.model_dump(exclude=IDLE)
    _ = Checkpoint(base_folder).family  # a clear error for a folder that holds no model of a known family
    digest, style = _read_base(base_folder, recipe.prompt, _state(base_folder))
    work = _Work(recipe, out, style)
    train, heldout = out / "data" / TRAIN, out / "data" / HELDOUT

    def merging(method: str) -> dict[str, Any]:
        heeded = MERGE_METHODS[method].heeded
        return {"method": method, "merge": recipe.merge.model_dump(include=heeded)}

    epochs, rate = sft_schedule(recipe)
    # What a dense model has no use for, or SFT's own stands for, is left out: it would only make SFT anew.
    dense = recipe.tune.model_dump(exclude={*IDLE, *MIXTURES_ONLY, "epochs", "lr"})
    sft = {"tune": dense, "epochs": epochs, "prompt": style, "lr": rate}
    members = {number: recipe.seed + SEEDS_APART * (number - 1) for number in range(2, recipe.sft.soup + 1)}
    souped = ("sft", *(f"soup/{number}" for number in members))
    origins = {f"experts_from {model}": folder_digest(resolve_base(model)) for model in recipe.upcycle.origins}
    sources = [source.model_dump() | {"path": source_name(source)} for source in recipe.data.sources]
    nodes = [
        Node(name="base", config={}, after=(), work=lambda folder, _: link_base(base_folder, folder),
             outside={"base": digest}, links=True),
        Node(name="data", config=recipe.data.model_dump() | {"sources": sources}, after=(),
             outside=sources_digest(recipe.data),
             work=lambda folder, _: prepare(recipe.data, folder, recipe.seed)),
        Node(name="sft", after=("base", "data"), outside={}, work=work.sft(train, recipe.seed), config=sft),
        *(
            Node(name=f"soup/{number}", after=("base", "data"), outside={}, work=work.sft(train, training_seed),
                 config=sft | {"training_seed": training_seed})
            for number, training_seed in members.items()
        ),
        *([Node(name="soup/mean", config={}, after=souped, outside={}, work=work.soup(souped))] if members else []),
        Node(name="upcycle", config=recipe.upcycle.model_dump(), outside=origins, work=work.upcycle(souped),
             after=(dense_of(recipe), *(souped if recipe.upcycle.from_soup else ()))),
        Node(name="moe", after=("upcycle", "data"), outside={}, work=work.moe(train),
             config={"tune": tune, "epochs": recipe.tune.epochs, "prompt": style}),
        Node(name="merge/uniform", config=merging("uniform"), after=("moe",), outside={},
             work=work.merge("uniform", train)),
        Node(name="merge/learned", after=("moe", "data"), outside={}, work=work.merge("learned", train),
             config={**merging("learned"), "tune": tune, "prompt": style}),
        *(
            Node(name=f"merge/{method}", config=merging(method), after=("moe", dense_of(recipe)), outside={},
                 work=work.merge(method, train))
            for method in recipe.merge.also
        ),
    ]  # fmt: skip
    evaluation: EvalConfig = recipe.eval
    dtype = str(compute_dtype(evaluation.precision)).removeprefix("torch.")  # answers of two types would be mixed
    scored = {entry.name: _data_hash(entry) for entry in evaluation.benchmarks}
    rows = [("base", "base", style), *((f"base-{other}", "base", other) for other in evaluation.base_prompts)]
    rows += [
        ("sft", "sft", style),
        *([("soup", "soup/mean", style)] if members else []),
        ("moe", "moe", style),
        ("uniform", "merge/uniform", style),
        ("xft", "merge/learned", style),
        *((method, f"merge/{method}", style) for method in recipe.merge.also),
    ]
    for row, source, prompt in rows:
        config = {
            **evaluation.model_dump(exclude={"base_prompts", "precision"}), "dtype": dtype, "prompt": prompt,
            "benchmark_data": scored, "heldout_tokens": heldout_tokens(recipe),
        }  # fmt: skip
        nodes.append(
            Node(name=f"eval/{row}", config=config, after=(source, "data"), outside={},
                 work=work.evaluate(row, out / source, prompt, heldout))
        )  # fmt: skip
    return nodes


def dense_of(recipe: Recipe) -> str:
    """Return the stage of the dense model that is upcycled."""
    return "soup/mean" if recipe.upcycle.from_soup else "base"


def heldout_tokens(recipe: Recipe) -> int:
    """Return where held-out pairs are cut: no earlier than those that are trained on."""
    from xft.eval.evaluate import HELDOUT_TOKENS

    return max(HELDOUT_TOKENS, recipe.tune.max_length)


def sft_schedule(recipe: Recipe) -> tuple[int, float]:
    """Return the SFT control's passes over the training pairs and its peak learning rate: tune's, but for its own."""
    return recipe.sft.epochs or recipe.tune.epochs, recipe.sft.lr or recipe.tune.lr


def _data_hash(entry: BenchmarkConfig) -> str:
    """Return the hash of a benchmark's data; "" for an optional one that can't be had, so that it runs once it can."""
    from xft.eval.benchmarks import BENCHMARKS

    try:
        return BENCHMARKS[entry.name].data_hash()
    except (DataError, FetchError):
        if entry.optional:
            return ""
        raise


@lru_cache(maxsize=8)
def _read_base(base: Path, prompt: str, state: tuple[Any, ...]) -> tuple[str, str]:
    """Return a base's digest and the prompt style; an experiment asks for the same many times."""
    from xft.prompts import resolve_prompt, tokenizer_of

    return folder_digest(base), resolve_prompt(prompt, tokenizer_of(base))


def _state(folder: Path) -> tuple[Any, ...]:
    """Return what changes when a folder's files do."""
    stats = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*") if path.is_file()}
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in sorted(stats.items()))


def link_base(base: Path, folder: Path) -> None:
    """Link a model's files into the run directory, after checking that it is whole and of a known family."""
    checkpoint = Checkpoint(base)
    _ = checkpoint.family
    wanted = {
        path for pattern in ("config.json", "*.safetensors", "*.index.json", *COMPANIONS) for path in base.glob(pattern)
    }
    for path in sorted(wanted):
        link = folder / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())


class _Work:
    """What the stages do, bound to a recipe and its run directory."""

    def __init__(self, recipe: Recipe, out: Path, style: str) -> None:
        self.recipe, self.out, self.style = recipe, out, style

    def upcycle(self, souped: Sequence[str]) -> Callable[[Path, Meter], None]:
        def work(folder: Path, _meter: Meter) -> None:
            from xft.prove import prove
            from xft.stage import write_json
            from xft.upcycle import upcycle

            recipe, dense = self.recipe, self.out / dense_of(self.recipe)
            own = [self.out / name for name in souped] if recipe.upcycle.from_soup else []
            origins = own or [resolve_base(model) for model in recipe.upcycle.origins]
            upcycle(dense, folder, recipe.upcycle, recipe.seed, name=recipe.base, origins=origins)
            write_json(folder / "proof.json", prove(dense, folder).as_dict())

        return work

    def sft(self, train: Path, seed: int) -> Callable[[Path, Meter], None]:
        section = "sft" if self.recipe.sft.lr else "tune"
        return self._tune("base", train, *sft_schedule(self.recipe), seed, "tune SFT", section)

    def soup(self, members: Sequence[str]) -> Callable[[Path, Meter], None]:
        def work(folder: Path, _meter: Meter) -> None:
            from xft.merge.soup import soup

            soup([self.out / name for name in members], None, folder, names=members)

        return work

    def moe(self, train: Path) -> Callable[[Path, Meter], None]:
        recipe = self.recipe
        return self._tune("upcycle", train, recipe.tune.epochs, recipe.tune.lr, recipe.seed, "tune mixture")

    def _tune(
        self, model: str, train: Path, epochs: int, lr: float, seed: int, label: str, section: str = "tune"
    ) -> Callable[[Path, Meter], None]:
        def work(folder: Path, meter: Meter) -> None:
            from xft.tune.tune import TuneJob, tune

            tune(
                TuneJob(
                    model=str(self.out / model), pairs=str(train), out=str(folder), prompt=self.style, epochs=epochs,
                    lr=lr, seed=seed, config=self.recipe.tune.model_dump(), label=label, section=section,
                ),
                meter,
            )  # fmt: skip

        return work

    def merge(self, method: str, train: Path) -> Callable[[Path, Meter], None]:
        def work(folder: Path, meter: Meter) -> None:
            from xft.data.sources import source_name
            from xft.merge.merge import MergeJob, merge

            merge(
                MergeJob(
                    mixture=self.out / "moe", out=folder, method=method, pairs=train, prompt=self.style,
                    seed=self.recipe.seed, tune=self.recipe.tune, merge=self.recipe.merge,
                    base=self.out / dense_of(self.recipe),
                    data=[source_name(source) for source in self.recipe.data.sources],
                ),
                meter,
            )  # fmt: skip

        return work

    def evaluate(self, row: str, model: Path, prompt: str, heldout: Path) -> Callable[[Path, Meter], None]:
        def work(folder: Path, meter: Meter) -> None:
            from xft.eval.evaluate import EvalJob, evaluate

            manifest = read_manifest(model) or {}
            evaluate(
                EvalJob(
                    model=str(model), model_digest=manifest["digest"], out=folder, style=prompt,
                    config=self.recipe.eval, heldout=heldout, label=row, heldout_tokens=heldout_tokens(self.recipe),
                ),
                meter,
            )  # fmt: skip

        return work
