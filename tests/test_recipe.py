"""The schema of recipes: what is shipped parses, what is wrong is named with its path, overrides do what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from xft.errors import RecipeError
from xft.recipe import Recipe, TuneConfig, load_any, load_recipe, parse_section, shipped_recipes

MINIMAL = "name: mine\nbase: some/folder\ndata: pairs.jsonl\n"


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL + "tune:\n  lr: 1.0e-3\n  epochs: 2\n")
    return path


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipe_parses_under_its_own_name(name: str) -> None:
    recipe = load_any(name)
    assert recipe.name == name
    if isinstance(recipe, Recipe):
        assert recipe.tune.batch % recipe.tune.micro_batch == 0


def test_the_papers_settings_and_the_tiny_recipe_are_shipped() -> None:
    assert {"xft-deepseek-coder-1.3b", "smollm2-135m", "smollm2-135m-demo", "tiny"} <= set(shipped_recipes())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("tunes: {}", "top level: unknown key 'tunes'; known keys: name, base, data, prompt, seed"),
        ("tune: {learning_rate: 1.0}", "tune: unknown key 'learning_rate'; known keys: epochs, batch, micro_batch, lr"),
        ("data: {sources: [{path: a, column: b}]}", "data.sources.0: unknown key 'column'; known keys: path, columns"),
        ("data: {sources: [a], held_out: 3}", "data: unknown key 'held_out'; known keys: sources, heldout, train"),
        ("eval: {benchmarks: [{name: a, nth: 2}]}", "eval.benchmarks.0: unknown key 'nth'; known keys: name, every"),
        ("tune: {lr: fast}", "tune.lr: .*, got 'fast'"),
        ("tune: {epochs: 1.5}", "tune.epochs: .*, got 1.5"),
        ("tune: {optimizer: sgd}", "tune.optimizer: .*'adafactor' or 'adamw', got 'sgd'"),
        ("tune: [1]", r"tune: .*, got \[1\]"),
        ("tune: {lr: 0}", "tune.lr: .*greater than 0, got 0"),
        ("tune: {warmup: 1.0}", "tune.warmup: .*less than 1, got 1.0"),
        ("merge: {shared_weight: 1.25}", "merge.shared_weight: .*less than or equal to 1, got 1.25"),
        ("merge: {shared_weight: -0.1}", "merge.shared_weight: .*greater than or equal to 0, got -0.1"),
        ("upcycle: {experts: 1}", "upcycle.experts: .*greater than or equal to 2, got 1"),
        ("upcycle: {experts: 4, active: 5}", "upcycle: active must be at most experts=4, got 5"),
        ("upcycle: {active: 0}", "upcycle.active: .*greater than or equal to 1, got 0"),
        ("tune: {train: routers, routed_lr: 1.0e-3}", "tune: routed_lr is .*; with train=routers they do not learn"),
        ("merge: {prior: 0.5}", "merge: prior holds a learned weight .*; set learn_shared_weight, or leave it out"),
        ("data: {sources: []}", "data.sources: .*at least 1 item"),
        ("name: a/b", "name: .*, got 'a/b'"),
    ],
)
def test_a_wrong_key_is_named_with_its_path_and_value(tmp_path: Path, wrong: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    kept = [line for line in MINIMAL.splitlines() if line.split(":")[0] != wrong.split(":")[0]]
    path.write_text("\n".join([*kept, wrong]))
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_misspelt_key_is_named_before_the_key_that_it_leaves_missing(tmp_path: Path) -> None:
    path = tmp_path / "misspelt.yaml"
    path.write_text("name: a\nbse: b\ndata: c\n")
    with pytest.raises(RecipeError, match="top level: unknown key 'bse'; known keys: name, base"):
        load_recipe(path)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text("name: a\nbase: b\n")
    with pytest.raises(RecipeError, match="data: Field required"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "not a YAML file"),
        (b"\xff\xfe\xfa", "not a YAML file"),
        (b"- 1", "a mapping"),
        (b"tune:\n  lr: 1\nname: a\ntune:\n  epochs: 9\n", "the key 'tune' stands twice"),
        (b"tune:\n  lr: 1\n  lr: 2\n", "the key 'lr' stands twice"),
    ],
)
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


def test_an_unknown_recipe_names_the_shipped_ones() -> None:
    with pytest.raises(RecipeError, match=r"nowhere: no such recipe file; shipped recipes: .*tiny"):
        load_recipe("nowhere")


def test_overrides_reach_their_keys_and_leave_the_others(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["base=/models/x", "tune.lr=1e-4", "merge.shared_weight=0.5", "seed=7"])
    assert recipe.base == "/models/x"
    assert recipe.tune.lr == 1e-4
    assert recipe.tune.epochs == 2
    assert recipe.merge.shared_weight == 0.5
    assert recipe.merge.lr == 0.05
    assert recipe.seed == 7


def test_a_wrong_override_is_not_blamed_on_the_file(recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match=r"^command line, for mine\.yaml: tune\.epochs: .*, got 0$"):
        load_recipe(recipe_file, ["tune.epochs=0"])
    recipe_file.write_text(MINIMAL + "tune:\n  epochs: 0\n")
    with pytest.raises(RecipeError, match=rf"^{recipe_file}: tune\.epochs: .*, got 0$"):
        load_recipe(recipe_file, ["seed=7"])


def test_a_recipe_that_the_command_line_makes_whole_is_judged_whole(tmp_path: Path) -> None:
    path = tmp_path / "no-base.yaml"
    path.write_text("name: a\ndata: b\n")
    assert load_recipe(path, ["base=c"]).base == "c"
    with pytest.raises(RecipeError, match=r"^command line, .*seed"):
        load_recipe(path, ["base=c", "seed=x"])


def test_benchmarks_and_prompts_can_be_named_with_commas(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["eval.benchmarks=humaneval+,mbpp+", "eval.base_prompts=completion"])
    assert [entry.name for entry in recipe.eval.benchmarks] == ["humaneval+", "mbpp+"]
    assert recipe.eval.base_prompts == ["completion"]


def test_a_data_override_replaces_the_sources_and_keeps_the_keys_beside_them() -> None:
    shipped = load_recipe("tiny")
    recipe = load_recipe("tiny", ["data=a.jsonl"])
    assert [source.path for source in recipe.data.sources] == ["a.jsonl"]
    assert (recipe.data.heldout, recipe.data.train) == (shipped.data.heldout, shipped.data.train)
    assert [source.path for source in load_recipe("tiny", ["data=a.jsonl,b.parquet"]).data.sources] == [
        "a.jsonl",
        "b.parquet",
    ]
    (source,) = load_recipe("tiny", ["data={path: a.jsonl, columns: {instruction: q}}"]).data.sources
    assert (source.path, source.columns) == ("a.jsonl", {"instruction": "q"})


def test_a_key_beside_sources_given_as_a_string_can_be_overridden(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["data.heldout=5"])
    assert recipe.data.heldout == 5
    assert [source.path for source in recipe.data.sources] == ["pairs.jsonl"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tune.learning_rate=1", "tune: unknown key 'learning_rate'; known keys: epochs"),
        ("nothing=1", "top level: unknown key 'nothing'"),
        ("tune.lr=fast", "tune.lr: .*got 'fast'"),
        ("tune.lr", "overrides have the form key=value"),
        ("=3", "overrides have the form key=value"),
        ("tune.lr.deep=3", "tune.lr: "),
        ("upcycle.rank=64", "upcycle: rank is that of differences; with layout=copy there are none"),
        ("eval.top_p=0.5", "eval: top_p=0.5 is for sampling; set temperature above 0"),
    ],
)
def test_a_wrong_override_is_named(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_file, [override])


def test_a_resolved_recipe_reads_back_equal() -> None:
    recipe = load_recipe("smollm2-135m")
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_a_section_cannot_be_changed_after_it_was_checked() -> None:
    config = parse_section(TuneConfig, {"lr": 1e-4}, "here")
    with pytest.raises(ValueError, match="frozen"):
        config.lr = 0.0  # type: ignore[misc]


def test_every_setting_says_what_it_means() -> None:
    sections = [Recipe, *(field.annotation for field in Recipe.model_fields.values())]
    undescribed = [
        f"{section.__name__}.{name}"
        for section in sections
        for name, field in getattr(section, "model_fields", {}).items()
        if not field.description
    ]
    assert undescribed == []


def test_the_papers_recipe_has_the_papers_parameter_counts() -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    import xft  # noqa: F401  (registers the mixture classes)
    from xft.cost import count
    from xft.families import FAMILIES
    from xft.moe.model import moe_classes

    dense_config = LlamaConfig(
        hidden_size=2048, intermediate_size=5504, num_hidden_layers=24, num_attention_heads=16, vocab_size=32256,
        tie_word_embeddings=False,
    )  # fmt: skip
    options = load_recipe("xft-deepseek-coder-1.3b").upcycle.model_dump()
    config_class, _ = moe_classes(FAMILIES["llama"])
    moe_config = config_class(**{**dense_config.to_dict(), "model_type": "xft_llama", "xft": options})
    with torch.device("meta"):
        dense = count(AutoModelForCausalLM.from_config(dense_config))
        mixture = count(AutoModelForCausalLM.from_config(moe_config))

    embedding, ffn = 32256 * 2048, 24 * 3 * 2048 * 5504
    router = 24 * (2048 * 7 + 7 * 7 + 2048 * 7)  # gate's two matrices and the noise's one
    assert dense.parameters == 1_346_471_936
    assert mixture.parameters == dense.parameters + 7 * ffn + router
    # The notes' 5.40 B count the embedding; a look-up is free, so `Cost.active` leaves it out.
    assert dense.active == dense.parameters - embedding
    assert mixture.active == dense.active + 5 * ffn + router
    assert mixture.parameters == pytest.approx(7.03e9, rel=2e-3)
    assert mixture.active + embedding == pytest.approx(5.40e9, rel=2e-3)
    assert dense.head == mixture.head == embedding


def test_averaging_experts_needs_copies(recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match="average_experts averages copies"):
        load_recipe(recipe_file, ["tune.average_experts=0.1", "upcycle.layout=delta"])
    with pytest.raises(RecipeError, match="average_experts moves the routed experts; with train=routers"):
        load_recipe(recipe_file, ["tune.average_experts=0.1", "tune.train=routers"])
    assert load_recipe(recipe_file, ["tune.average_experts=0.1"]).tune.average_experts == 0.1
