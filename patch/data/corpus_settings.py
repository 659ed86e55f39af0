"""Settings of corpora: sources of text and their splits."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from patch.settings import Section

Split = Literal["train", "calibration", "validation", "test"]


class SplitBySeed(Section):
    """Fraction of the characters in each split. Paragraphs are assigned to the splits at random."""

    train: float = Field(0.88, ge=0, le=1, description="Fraction for training models and learning masks.")
    calibration: float = Field(0.04, ge=0, le=1, description="Fraction for the calibration of one-shot methods.")
    validation: float = Field(0.02, ge=0, le=1, description="Fraction for validation.")
    test: float = Field(0.06, ge=0, le=1, description="Fraction for perplexity and the zero-shot tasks.")
    seed: int = Field(0, ge=0, description="Seed of the shuffle that assigns paragraphs to splits.")

    @model_validator(mode="after")
    def _sums_to_one(self) -> SplitBySeed:
        total = self.train + self.calibration + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the fractions train + calibration + validation + test are {total:g}; they must sum to 1")
        return self


class PackageSource(Section):
    """Text from an installed Python package; nothing is downloaded."""

    kind: Literal["package"] = "package"
    distribution: str = Field(description="Name of the package on PyPI, for the message when it is not installed.")
    text: str = Field(description="Location of the text, `module:attribute.path`; a string with one document per line.")
    remove: str = Field("", description="Characters to delete from the text, such as editorial brackets.")
    split: SplitBySeed = Field(default_factory=SplitBySeed, description="Fractions of the splits.")


class FilesSource(Section):
    """Local files: `.txt` (paragraphs separated by empty lines) or `.jsonl` (one document per line)."""

    kind: Literal["files"] = "files"
    files: list[str] | dict[Split, list[str]] = Field(
        description="Paths or globs. A list is divided by `split`; a mapping assigns files to splits."
    )
    field: str = Field("text", description="Key of the text in a JSON line.")
    split: SplitBySeed = Field(default_factory=SplitBySeed, description="Fractions of the splits if `files` is a list.")


class HubSource(Section):
    """Data set of the Hugging Face hub, downloaded by the rule `fetch_corpus`."""

    kind: Literal["hub"] = "hub"
    repo: str = Field(description="Data set id, `owner/name`.")
    revision: str = Field(description="Commit of the data set.", min_length=7)
    name: str | None = Field(None, description="Configuration of the data set, for example `wikitext-2-raw-v1`.")
    data_files: str | None = Field(
        None, description="Glob of files in the repository; by default the files of the configuration."
    )
    splits: dict[Split, str] = Field(description="Mapping from a split of the corpus to a split of the data set.")
    field: str = Field("text", description="Column of the text.")
    size_gb: float = Field(1.0, gt=0, description="Download size in GB, for the disk plan.")


class Corpus(Section):
    """Named source of text."""

    source: Annotated[PackageSource | FilesSource | HubSource, Field(discriminator="kind")] = Field(
        description="Source of the text."
    )

    @property
    def split_names(self) -> list[str]:
        """Names of the splits that have text."""
        source = self.source
        if isinstance(source, HubSource):
            return list(source.splits)
        if isinstance(source, FilesSource) and isinstance(source.files, dict):
            return list(source.files)
        return [name for name in get_args(Split) if getattr(source.split, name) > 0]


class Use(Section):
    """Corpus and split that a stage reads."""

    corpus: str = Field(description="Name under `corpora`.")
    split: Split = Field(description="Split of the corpus.")
