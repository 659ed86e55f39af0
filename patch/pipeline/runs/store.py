"""What experiments share, by content: corpora, tokenizers, models, token windows, task data.

Each has a name with a digest of everything it is made from, so two experiments share it exactly when
it is the same for both, and a changed setting makes a new one instead of overwriting.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from patch.data.settings import Use
from patch.data.sources import expand
from patch.errors import InputError, suggest
from patch.evaluation.tasks import task_files, task_names
from patch.pipeline.config.experiment import Experiment
from patch.pipeline.config.imports import FileMask
from patch.pipeline.runs.cell import Cell
from patch.pipeline.runs.layout import STORE, digest, input_path, spec_digest
from patch.pipeline.runs.specs import (
    CorpusSpec,
    MaskSpec,
    ModelSpec,
    StatisticsSpec,
    TasksSpec,
    TokenizerSpec,
    WindowsSpec,
)


def _contents(folder: str) -> str:
    """Digest of the task files of a folder: an edited question format makes other tasks."""
    return digest({str(path.relative_to(folder)): _text(path) for path in task_files(folder)})


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"task file {path}: cannot be read ({error.strerror})") from None
    # What is no text counts too: bytes that are not UTF-8 become characters that no text has.
    return content.decode("utf-8", "surrogateescape").replace("\r\n", "\n").replace("\r", "\n")


@dataclass(frozen=True)
class Windows:
    """One file of token windows: what it is, the tokenizer's folder, the corpus' folder."""

    spec: WindowsSpec
    tokenizer: str
    corpus: str

    @property
    def key(self) -> str:
        """Name of the file."""
        return f"{self.spec.kind}-{Path(self.tokenizer).name}-{spec_digest(self.spec)}"

    @property
    def path(self) -> str:
        """The file."""
        return f"{STORE}/windows/{self.key}.npy"


@dataclass(frozen=True)
class Statistics:
    """One folder of the statistics of a dense model's inputs."""

    spec: StatisticsSpec
    model: str
    windows: Windows

    @property
    def key(self) -> str:
        """Name of the folder."""
        return f"{self.model}-{spec_digest(self.spec)}"

    @property
    def path(self) -> str:
        """The folder."""
        return f"{STORE}/statistics/{self.key}"


class Store:
    """Names, paths and specs of what an experiment reads from the store.

    Raises:
        InputError: a local file of a corpus does not exist, or `include_path` has no such task.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.models = experiment.models
        for name in experiment.corpora:
            self.corpus_files(name)
        self._check_tasks()

    def _check_tasks(self) -> None:
        evaluation = self.experiment.evaluation
        if evaluation.include_path is None:
            return
        known = task_names(evaluation.include_path)
        for name in evaluation.tasks:
            if name not in known:
                raise InputError(f"`evaluation.tasks` names {name!r}; {suggest(name, known)}")

    def corpus_spec(self, name: str) -> CorpusSpec:
        """How a corpus is made."""
        return CorpusSpec(corpus=self.experiment.corpora[name])

    def corpus_path(self, name: str) -> str:
        """Folder of a corpus."""
        return f"{STORE}/corpora/{name}-{spec_digest(self.corpus_spec(name))}"

    def corpus_files(self, name: str) -> list[str]:
        """The local files that a corpus is read from, none for other kinds.

        Raises:
            InputError: a path or glob matches nothing.
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

    def tokenizer_spec(self, model: str) -> TokenizerSpec:
        """How the tokenizer of a trained model is made."""
        source = self.models[model].source
        return TokenizerSpec(upstream=self.corpus_path(source.corpus), vocab_size=source.tokenizer.vocab_size)

    def tokenizer_path(self, model: str) -> str:
        """Folder of a model's tokenizer: one of its own for a trained model, else the model's."""
        source = self.models[model].source
        if source.kind != "train":
            return self.model_path(model)
        key = spec_digest(self.tokenizer_spec(model))
        return f"{STORE}/tokenizers/{source.corpus}-{source.tokenizer.vocab_size}-{key}"

    @cache  # noqa: B019 - one store a process; lists a local model's files
    def model_spec(self, model: str) -> ModelSpec:
        """How a model's folder is made."""
        source = self.models[model].source
        upstream = ""
        if source.kind == "train":
            upstream = self.training_windows(model).path
        elif source.kind == "local":
            files = [path for path in Path(source.path).rglob("*") if path.is_file()]
            upstream = digest(sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files))
        return ModelSpec(upstream=upstream, source=source)

    def model_path(self, model: str) -> str:
        """Folder of a model."""
        return f"{STORE}/models/{model}-{spec_digest(self.model_spec(model))}"

    def windows(
        self, model: str, use: Use, kind: str, seqlen: int, samples: int | None = None, seed: int | None = None
    ) -> Windows:
        """Windows of a part of a corpus in a model's tokens."""
        tokenizer, corpus = self.tokenizer_path(model), self.corpus_path(use.corpus)
        upstream = f"{tokenizer} {corpus}"
        spec = WindowsSpec(upstream=upstream, kind=kind, split=use.split, seqlen=seqlen, samples=samples, seed=seed)
        return Windows(spec, tokenizer, corpus)

    def training_windows(self, model: str) -> Windows:
        """What a small model is trained on."""
        source = self.models[model].source
        return self.windows(model, Use(corpus=source.corpus, split="train"), "packed", source.training.seqlen)

    def calibration_windows(self, model: str, seed: int) -> Windows:
        """What the one-shot methods see."""
        settings = self.experiment.calibration
        return self.windows(model, settings.use, "calibration", settings.seqlen, settings.samples, seed)

    def statistics(self, model: str, seed: int, gram: bool) -> Statistics:
        """What the dense model's layers read of the calibration windows."""
        windows = self.calibration_windows(model, seed)
        spec = StatisticsSpec(
            upstream=f"{self.model_path(model)} {windows.path}",
            gram=gram,
            batch_size=self.experiment.calibration.batch_size,
            dtype=self.models[model].dtype,
            device=self.experiment.resources.device,
        )
        return Statistics(spec, model, windows)

    def mask_spec(self, name: str) -> MaskSpec:
        """How an imported mask's file is fetched."""
        return MaskSpec(source=self.experiment.imports[name].source)

    def mask_source(self, name: str) -> str:
        """An imported mask's file, or the folder that a fetched one is in."""
        source = self.experiment.imports[name].source
        return (
            input_path(source.path, f"imports.{name}.source.path")
            if isinstance(source, FileMask)
            else f"{STORE}/imports/{name}-{spec_digest(self.mask_spec(name))}"
        )

    def mask_contents(self, name: str) -> str:
        """What stands for the contents of an imported mask's file.

        Raises:
            InputError: there is no such local file.
        """
        source, path = self.experiment.imports[name].source, Path(self.mask_source(name))
        if not isinstance(source, FileMask):
            return str(path)
        if not path.is_file():
            raise InputError(f"`imports.{name}.source.path` is {source.path!r}: no such file")
        return digest([path.name, path.stat().st_size, path.stat().st_mtime_ns])

    def perplexity_windows(self, model: str) -> Windows:
        """What perplexity is measured on."""
        settings = self.experiment.evaluation.perplexity
        return self.windows(model, settings.use, "joined", settings.seqlen)

    @cache  # noqa: B019 - one store a process; reads the task files
    def tasks_spec(self) -> TasksSpec:
        """How the data of the zero-shot tasks is made or fetched."""
        evaluation = self.experiment.evaluation
        made = evaluation.include_path is not None
        return TasksSpec(
            upstream=f"{self.corpus_path(evaluation.task_use.corpus)} {_contents(evaluation.include_path)}"
            if made
            else "",
            tasks=evaluation.tasks,
            include_path=evaluation.include_path,
            split=evaluation.task_use.split if made else None,
            samples=evaluation.task_samples,
        )

    def tasks_path(self) -> str:
        """Folder of the tasks' data."""
        return f"{STORE}/tasks/{spec_digest(self.tasks_spec())}"


def calibrated(cell: Cell) -> bool:
    """Whether a cell needs calibration windows."""
    if cell.quantization:
        return cell.quantization == "slim-lora"
    return cell.spec.stage == "prune" and cell.spec.statistics != "none"
