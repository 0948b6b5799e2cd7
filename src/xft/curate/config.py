"""What a user can set of `xft curate`: sources, steps, deduplication, decontamination, mixing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from xft.recipe import DataSource, Section, parse_section


class CurateSource(DataSource):
    """One source of records."""

    name: str = ""
    """Name in statistics and weights; the path by default."""
    license: str | None = None
    """Licence of its records that do not name one themselves."""
    language: str | None = None
    """Programming language of its records that do not name one themselves."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share of the mix, relative to the other sources' (when `mix` has weights or a budget to apply)."""

    @property
    def label(self) -> str:
        """Return the name in statistics."""
        return self.name or self.path


class StepConfig(Section):
    """One filter; written as `NAME` or `NAME: {option: value}`."""

    name: str
    """A name in `xft.curate.step.STEPS`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Its options; the step's own section says which there are."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and len(value) == 1 and "name" not in value:
            ((name, options),) = value.items()
            return {"name": name, "options": options or {}}
        return value


class DedupConfig(Section):
    """Which records count as the same; of each group the first one is kept, in the order of the sources."""

    exact: bool = True
    """Drop a record whose text is an earlier one's, but for case and white space."""
    near: bool = True
    """Drop near-duplicates, found by MinHash and LSH."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Least estimated Jaccard similarity of near-duplicates."""
    words: Annotated[int, Field(ge=1)] = 5
    """Words of a shingle."""
    permutations: Annotated[int, Field(ge=8)] = 128
    """Values of a signature, of 4 bytes each."""
    bands: Annotated[int, Field(ge=1)] = 16
    """Bands of the LSH index; signatures that agree in one whole band are compared."""

    @model_validator(mode="after")
    def _bands_divide(self) -> DedupConfig:
        if self.permutations % self.bands:
            raise ValueError(f"bands must divide permutations={self.permutations}, got {self.bands}")
        return self


class DecontaminateConfig(Section):
    """What counts as a benchmark's own text, and what happens to it; leaks are always dropped."""

    benchmarks: tuple[str, ...] | None = None
    """Names in `xft.eval.benchmark.BENCHMARKS`; all of them by default."""
    common: Literal["keep", "drop"] = "keep"
    """What happens to a solution of a benchmark that stands under another statement: generic code, such as gcd."""
    functional: bool = True
    """Run answers against the benchmarks' tests in the sandbox."""
    ngrams: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Least share of a problem's runs of ten words that a record must hold to match it."""
    ast: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Least overlap of an answer's function with a solution, names left out, to match it."""
    statement: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Least weighted share of a problem's words that an instruction must hold to match its statement."""


class MixConfig(Section):
    """How sources become one set."""

    tokens: Annotated[int, Field(ge=1)] | None = None
    """Budget, shared out by the sources' weights; by default everything, or as much as the weights allow.

    What a source is too small for goes to the others, unless `weighted`.
    """
    repeats: Annotated[int, Field(ge=1)] = 1
    """How often a record may be used to fill its source's share (upsampling)."""
    weighted: bool = False
    """Hold to the sources' weights; without it, and without a budget, every record is used once."""
    shuffle: bool = False
    """Write the records in an order drawn by the seed, instead of the sources' own."""
    tokenizer: str | None = None
    """A tokenizer.json to count tokens with; by default four characters count as a token."""

    @model_validator(mode="after")
    def _repeats_fill_something(self) -> MixConfig:
        if self.repeats > 1 and not self.weighted and self.tokens is None:
            raise ValueError("repeats fills shares of a mix: set weighted or tokens with it")
        return self

    @property
    def applies(self) -> bool:
        """Tell whether there is anything to do but to write the records one after the other."""
        return self.weighted or self.shuffle or self.tokens is not None


class Curation(Section):
    """What is done with records, wherever they come from."""

    kind: Literal["pairs", "text"] = "pairs"
    """Instruction pairs, or raw documents: records with `text` or `content`."""
    steps: list[StepConfig] | None = None
    """Filters in order; by default those of `xft.curate.step.DEFAULTS` for the kind of records."""
    dedup: DedupConfig = DedupConfig()
    """Deduplication."""
    decontaminate: DecontaminateConfig | None = DecontaminateConfig()
    """Decontamination; null leaves it out."""
    mix: MixConfig = MixConfig()
    """Mixing."""


class CurateConfig(Curation):
    """A whole `xft curate`."""

    sources: list[CurateSource] = Field(min_length=1)
    """Where the records come from, in order: of duplicates the first is kept."""

    @field_validator("sources", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value

    @model_validator(mode="after")
    def _names_differ(self) -> CurateConfig:
        labels = [source.label for source in self.sources]
        if len(set(labels)) < len(labels):
            twice = next(label for label in labels if labels.count(label) > 1)
            raise ValueError(f"two sources are called {twice!r}; give one of them another name")
        return self


def parse_curate(tree: dict[str, Any], where: str) -> CurateConfig:
    """Check a mapping against the schema, its steps and their options included.

    Raises:
        RecipeError: the first problem, with its path.
        UnknownNameError: no such step.
    """
    from xft.curate.step import build_steps

    config = parse_section(CurateConfig, tree, where)
    build_steps(config.steps, config.kind)
    return config
