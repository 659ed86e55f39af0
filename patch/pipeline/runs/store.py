"""Content-addressed artifacts that experiments share: corpora, tokenizers, models, token sequences and task data.

The name of each artifact has a digest of everything that it is made from. Two experiments therefore share an artifact
exactly if it is the same for both. A changed setting makes a new artifact and does not overwrite the old one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from patch.data.corpus_settings import Use
from patch.data.sources import expand
from patch.errors import InputError, suggest
from patch.evaluation.task_index import check_tasks
from patch.evaluation.tasks import task_files, task_names
from patch.files.io import read_bytes
from patch.pipeline.config.experiment import Experiment
from patch.pipeline.config.imports import FileMask
from patch.pipeline.runs.layout import STORE, digest, input_path, settings_digest
from patch.pipeline.runs.run import Run
from patch.pipeline.runs.stage_settings import (
    CorpusSettings,
    MaskSettings,
    ModelSettings,
    SequencesSettings,
    StatisticsSettings,
    TasksSettings,
    TokenizerSettings,
)


def _contents(folder: str) -> str:
    """Return the digest of the task files of a folder, so that an edited question format changes the tasks."""
    return digest({str(path.relative_to(folder)): _text(path) for path in task_files(folder)})


def _text(path: Path) -> str:
    content = read_bytes(path, f"task file {path}")
    # Bytes that are not UTF-8 become surrogates, so that they change the digest too.
    return content.decode("utf-8", "surrogateescape").replace("\r\n", "\n").replace("\r", "\n")


@dataclass(frozen=True)
class Sequences:
    """A file of token sequences: its settings, the tokenizer's folder and the corpus' folder."""

    settings: SequencesSettings
    tokenizer: str
    corpus: str

    @property
    def key(self) -> str:
        """Name of the file, without folder and suffix."""
        return f"{self.settings.kind}-{Path(self.tokenizer).name}-{settings_digest(self.settings)}"

    @property
    def path(self) -> str:
        """Path of the file."""
        return f"{STORE}/sequences/{self.key}.npy"


@dataclass(frozen=True)
class Statistics:
    """A folder with statistics of the inputs of a dense model's layers."""

    settings: StatisticsSettings
    model: str
    sequences: Sequences

    @property
    def key(self) -> str:
        """Name of the folder."""
        return f"{self.model}-{settings_digest(self.settings)}"

    @property
    def path(self) -> str:
        """Path of the folder."""
        return f"{STORE}/statistics/{self.key}"


class Store:
    """Names, paths and settings of the shared artifacts of an experiment.

    Raises:
        InputError: A local file of a corpus does not exist, or `include_path` lacks a task.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.models = experiment.models
        for name in experiment.corpora:
            self.corpus_files(name)
        if experiment.evaluation.include_path is not None:
            self.check_tasks()

    def check_tasks(self) -> None:
        """Check the tasks against their files; for lm-eval's own tasks, this reads 14,000 files in half a second.

        Raises:
            InputError: A task does not exist, cannot be measured, or lacks what a key asks for.
        """
        evaluation = self.experiment.evaluation
        include_path = Path(evaluation.include_path) if evaluation.include_path is not None else None
        if include_path is not None:
            known = task_names(include_path)
            for name in evaluation.tasks:
                if name not in known:
                    raise InputError(f"`evaluation.tasks` names {name!r}; {suggest(name, known)}")
        check_tasks(evaluation.tasks, include_path, evaluation.fewshot, evaluation.acc_norm)

    def corpus_settings(self, name: str) -> CorpusSettings:
        """Return the settings of the stage that makes a corpus."""
        return CorpusSettings(corpus=self.experiment.corpora[name])

    def corpus_path(self, name: str) -> str:
        """Return the folder of a corpus."""
        return f"{STORE}/corpora/{name}-{settings_digest(self.corpus_settings(name))}"

    def corpus_files(self, name: str) -> list[str]:
        """Return the local files of a corpus, or an empty list if its source is not local files.

        Raises:
            InputError: A path or glob matches no file.
        """
        source = self.experiment.corpora[name].source
        if source.kind != "files":
            return []
        lists = (
            source.files if isinstance(source.files, list) else [p for paths in source.files.values() for p in paths]
        )
        try:
            return [input_path(str(path), f"corpora.{name}.source.files") for path in expand(lists)]
        except (InputError, ValueError, IndexError) as error:
            raise InputError(f"`corpora.{name}.source.files`: {error}") from None

    def tokenizer_settings(self, model: str) -> TokenizerSettings:
        """Return the settings of the stage that makes the tokenizer of a trained model."""
        source = self.models[model].source
        return TokenizerSettings(upstream=self.corpus_path(source.corpus), vocab_size=source.tokenizer.vocab_size)

    def tokenizer_path(self, model: str) -> str:
        """Return the folder of a model's tokenizer, which is the model's folder unless the model is trained here."""
        source = self.models[model].source
        if source.kind != "train":
            return self.model_path(model)
        key = settings_digest(self.tokenizer_settings(model))
        return f"{STORE}/tokenizers/{source.corpus}-{source.tokenizer.vocab_size}-{key}"

    @cache  # noqa: B019 - one store a process; lists a local model's files
    def model_settings(self, model: str) -> ModelSettings:
        """Return the settings of the stage that makes a model's folder."""
        source = self.models[model].source
        upstream = ""
        if source.kind == "train":
            upstream = self.training_sequences(model).path
        elif source.kind == "local":
            files = [path for path in Path(source.path).rglob("*") if path.is_file()]
            upstream = digest(sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files))
        return ModelSettings(upstream=upstream, source=source)

    def model_path(self, model: str) -> str:
        """Return the folder of a model."""
        return f"{STORE}/models/{model}-{settings_digest(self.model_settings(model))}"

    def sequences(
        self, model: str, use: Use, kind: str, seqlen: int, samples: int | None = None, seed: int | None = None
    ) -> Sequences:
        """Return the sequences of a split of a corpus in a model's tokens."""
        tokenizer, corpus = self.tokenizer_path(model), self.corpus_path(use.corpus)
        upstream = f"{tokenizer} {corpus}"
        settings = SequencesSettings(
            upstream=upstream, kind=kind, split=use.split, seqlen=seqlen, samples=samples, seed=seed
        )
        return Sequences(settings, tokenizer, corpus)

    def training_sequences(self, model: str) -> Sequences:
        """Return the sequences that a small model is trained on."""
        source = self.models[model].source
        return self.sequences(model, Use(corpus=source.corpus, split="train"), "packed", source.training.seqlen)

    def calibration_sequences(self, model: str, seed: int) -> Sequences:
        """Return the calibration sequences of the one-shot methods."""
        settings = self.experiment.calibration
        return self.sequences(model, settings.use, "calibration", settings.seqlen, settings.samples, seed)

    def statistics(self, model: str, seed: int, gram: bool) -> Statistics:
        """Return the statistics of the dense model's layer inputs on the calibration sequences."""
        sequences = self.calibration_sequences(model, seed)
        settings = StatisticsSettings(
            upstream=f"{self.model_path(model)} {sequences.path}",
            gram=gram,
            batch_size=self.experiment.calibration.batch_size,
            dtype=self.models[model].dtype,
            device=self.experiment.resources.device,
        )
        return Statistics(settings, model, sequences)

    def mask_settings(self, name: str) -> MaskSettings:
        """Return the settings of the stage that downloads an imported mask."""
        return MaskSettings(source=self.experiment.imports[name].source)

    def mask_source(self, name: str) -> str:
        """Return the local file of an imported mask, or the folder of a downloaded one."""
        source = self.experiment.imports[name].source
        return (
            input_path(source.path, f"imports.{name}.source.path")
            if isinstance(source, FileMask)
            else f"{STORE}/imports/{name}-{settings_digest(self.mask_settings(name))}"
        )

    def mask_contents(self, name: str) -> str:
        """Return a fingerprint of an imported mask: its file's name, size and time, or the path of a downloaded one.

        Raises:
            InputError: The local file does not exist.
        """
        source, path = self.experiment.imports[name].source, Path(self.mask_source(name))
        if not isinstance(source, FileMask):
            return str(path)
        if not path.is_file():
            raise InputError(f"`imports.{name}.source.path` is {source.path!r}: no such file")
        return digest([path.name, path.stat().st_size, path.stat().st_mtime_ns])

    def perplexity_sequences(self, model: str) -> Sequences:
        """Return the sequences that perplexity is measured on."""
        settings = self.experiment.evaluation.perplexity
        return self.sequences(model, settings.use, "joined", settings.seqlen)

    @cache  # noqa: B019 - one store a process; reads the task files
    def tasks_settings(self) -> TasksSettings:
        """Return the settings of the stage that makes or downloads the data of the zero-shot tasks."""
        evaluation = self.experiment.evaluation
        made = evaluation.include_path is not None
        return TasksSettings(
            upstream=f"{self.corpus_path(evaluation.task_use.corpus)} {_contents(evaluation.include_path)}"
            if made
            else "",
            tasks=evaluation.tasks,
            include_path=evaluation.include_path,
            split=evaluation.task_use.split if made else None,
            samples=evaluation.task_samples,
            # Made data does not depend on the number.
            fewshot={} if made else evaluation.fewshot,
        )

    def tasks_path(self) -> str:
        """Return the folder of the tasks' data."""
        return f"{STORE}/tasks/{settings_digest(self.tasks_settings())}"


def calibrated(run: Run) -> bool:
    """Return whether the last stage that makes a run's weights or mask needs calibration sequences."""
    if run.finetune:
        return False
    if run.quantization:
        return run.quantization == "slim-lora"
    return run.definition.stage == "prune" and run.definition.statistics != "none"
