"""The settings of synthesis. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from xft.recipe import Section


class SeedSource(Section):
    """One source of seed documents."""

    path: str
    """A file of code or text, a folder, a git repository, JSONL or Parquet, a hub data set (`owner/name`), or `stdlib`.

    `stdlib` is Python's own library, under its licence, without tests and tables.
    """
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""
    license: str | None = None
    """Licence (SPDX) of documents that carry none: no field, no header, no LICENSE file above them."""
    exclude: list[str] = Field(default=[])
    """Shell patterns of names of files and folders, within the folder, that are left out."""
    column: str | None = None
    """Column of a record's text; by default the first of content, code, text, instruction."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class TeacherConfig(Section):
    """Who answers."""

    name: Annotated[str, Field(min_length=1)]
    """A server's address (`http://host:8000/v1`; its key is read from OPENAI_API_KEY), or a local model."""
    model: str | None = None
    """The server's model; the first that it has by default."""
    prompt: str = "auto"
    """Prompt style: auto, chat, magicoder or completion."""
    backend: str = "transformers"
    """What runs a local model: transformers or vllm."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Answers made, or requests sent, at once."""

    @property
    def local(self) -> bool:
        """Tell whether it runs here, which takes the training extra."""
        return not self.name.startswith(("http://", "https://"))

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class CheckConfig(Section):
    """How solutions are run."""

    languages: list[str] = Field(default=["python"])
    """Languages whose solutions are run, names in `xft.synth.testing.TESTINGS`; none, or `off`: nothing is run."""
    tests: Annotated[int, Field(ge=1)] = 3
    """Tests that must pass and fail on a mutated solution."""
    mutants: Annotated[int, Field(ge=1)] = 12
    """Mutated solutions that tests are tried on."""
    votes: Annotated[int, Field(ge=0, le=8)] = 0
    """Fresh solutions asked for where tests expect other results than the solution's; each has a vote, as it has."""
    repair: bool = True
    """Ask once more, with the error, before a pair is rejected."""
    seconds: Annotated[float, Field(gt=0)] = 10.0
    """Wall-clock limit of a program."""
    memory_mb: Annotated[int, Field(ge=16)] = 1024
    """Memory limit of a program."""
    libraries: list[str] = Field(default=[])
    """Installed distributions that Python solutions may import, beside the standard library."""

    @field_validator("languages", "libraries", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return [name for name in value.split(",") if name not in ("", "off")] if isinstance(value, str) else value


class SynthConfig(Section):
    """How pairs are made."""

    method: str = "oss-instruct"
    """A name in `xft.synth.methods.METHODS`."""
    pairs: Annotated[int, Field(ge=1)] = 1000
    """Pairs to keep."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Tasks to begin at most; ten for each pair by default. A trial has few, and forecasts the rest."""
    mix: dict[str, Annotated[float, Field(gt=0)]] = Field(default={})
    """Weights of the seeds' languages; by default seeds are taken as they come, in a shuffled order."""
    licenses: list[str] = Field(default=[])
    """Use only seeds under these licences; all by default, `unknown` included."""
    lines: Annotated[int, Field(ge=1)] = 15
    """oss-instruct: consecutive lines of a document shown at most."""
    rounds: Annotated[int, Field(ge=1, le=10)] = 3
    """evol-instruct: evolutions of an instruction; instruct-pretrain: texts that build on one another."""
    domain: str = "Python programming"
    """self-instruct: what the tasks are about."""
    tasks: Annotated[int, Field(ge=1, le=20)] = 5
    """self-instruct: new tasks a request asks for; instruct-pretrain: pairs a text."""
    chars: Annotated[int, Field(ge=100)] = 3000
    """Characters of a document shown at most by the methods that show it whole."""
    temperature: Annotated[float, Field(ge=0)] | None = None
    """Of requests that invent; the method's own by default. Solutions, tests and judgements are greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the probability that inventing requests sample from; the method's own by default."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 1024
    """Longest answer in tokens; one that is cut off is rejected."""
    input_price: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million prompt tokens, in any currency."""
    output_price: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million tokens of answers."""
    check: CheckConfig = CheckConfig()
    """The execution check."""

    @field_validator("licenses", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return [name for name in value.split(",") if name] if isinstance(value, str) else value

    @property
    def attempts(self) -> int:
        """Return the tasks begun at most."""
        return self.limit or 10 * self.pairs
