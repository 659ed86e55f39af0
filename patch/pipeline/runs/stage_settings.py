"""Settings of each stage: exactly the values of the configuration that its result depends on.

Their digest is a parameter of the job's rule, so a change of any value reruns the job, and no other change does. Edited
code does not rerun a job: raise the `version` of the stage if an algorithm computes something else.
`upstream` is a digest of the settings that the inputs were made with.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from patch.data.corpus_settings import Corpus, Split
from patch.learning.finetuning_settings import Finetuning, Kind
from patch.learning.learning_settings import Learning
from patch.models.model_settings import GgufModel, HubModel, LocalModel, TrainedModel
from patch.pipeline.config.experiment import Evaluation, Perplexity, Speedup
from patch.pipeline.config.imports import FileMask, HubMask
from patch.pipeline.runs.run import ModelInfo, Run
from patch.pruning.pruning_settings import Pruning
from patch.quantization.quantization_settings import Quantization
from patch.settings import Section

# Forms of an exported model, see `patch.inference.export`.
Form = Literal["packed", "dense", "compressed-tensors"]

# Version of tables, figures and pages, which change together.
TABULATE_VERSION = 6


class ExpectedMask(Section):
    """Description of the mask that a job reads; ``digest`` covers its settings, model and calibration."""

    method: str
    pattern: str
    sparsity: float
    tile: int | None
    digest: str


class CorpusSettings(Section):
    """Settings of the stage that divides a text into splits."""

    version: int = 1
    corpus: Corpus


class TokenizerSettings(Section):
    """Settings of the stage that trains a byte-level BPE tokenizer on the train split."""

    version: int = 1
    upstream: str
    vocab_size: int


class ModelSettings(Section):
    """Settings of the stages that download, copy or train a model."""

    version: int = 1
    upstream: str
    source: TrainedModel | HubModel | LocalModel | GgufModel


class SequencesSettings(Section):
    """Settings of the stage that makes token sequences of a text."""

    version: int = 1
    upstream: str
    kind: Literal["calibration", "packed", "packed-without-eos", "joined"]
    split: Split
    seqlen: int
    samples: int | None = None
    seed: int | None = None


class TasksSettings(Section):
    """Settings of the stages that make or download the data of the tasks."""

    version: int = 1
    upstream: str
    tasks: list[str]
    include_path: str | None
    split: Split | None
    samples: int
    fewshot: dict[str, int] = {}


class MaskSettings(Section):
    """Settings of the stage that downloads a mask file from a hub."""

    version: int = 1
    source: HubMask


class ImportSettings(Section):
    """Settings of the stage that checks an imported mask; ``upstream`` is a digest of the file and the model."""

    version: int = 2
    upstream: str
    source: HubMask | FileMask
    method: str
    pattern: str
    tile: int | None


class SelfTestSettings(Section):
    """Settings of the stage that compares the kernels with plain PyTorch."""

    version: int = 1
    device: str


class StatisticsSettings(Section):
    """Settings of the stage that collects statistics of the inputs of a dense model's layers."""

    version: int = 2
    upstream: str
    gram: bool
    batch_size: int
    dtype: str
    device: str


class PruneSettings(Section):
    """Settings of one-shot pruning; ``package`` is the name and version of another package that has the method."""

    version: int = 3
    upstream: str
    model: str
    method: str
    package: str = Field("", exclude_if=lambda package: not package)
    pattern: str
    sparsity: float
    seed: int
    batch_size: int
    pruning: Pruning
    dtype: str
    device: str


class LearnSettings(Section):
    """Settings of mask learning."""

    version: int = 4
    upstream: str
    model: str
    method: str
    pattern: str
    sparsity: float
    tile: int | None
    seed: int
    masks: dict[str, ExpectedMask] = {}
    learning: Learning
    dtype: str
    device: str


class FinetuneSettings(Section):
    """Settings of the fine-tuning of a pruned run; ``kind`` is `full` or `lora`.

    ``pruning`` are the settings of a method that updates the weights, which are made again.
    """

    version: int = 1
    upstream: str
    kind: Kind
    mask: ExpectedMask
    pruning: PruneSettings | None
    seed: int
    finetuning: Finetuning
    dtype: str
    device: str


class QuantizeSettings(Section):
    """Settings of the quantization of a pruned run; ``method`` is `absmax` or `slim-lora`."""

    version: int = 2
    upstream: str
    method: str
    mask: ExpectedMask | None
    batch_size: int
    quantization: Quantization
    dtype: str
    device: str


class ExportSettings(Section):
    """Settings of the export of a run to a folder that transformers loads.

    ``quantized`` and ``finetuned`` are the digests of its low-bit and of its fine-tuned weights. ``source``,
    ``perplexity`` and ``text``, the corpus of the perplexity, are named in the model card, and ``record`` is the digest
    of the evaluation whose metrics the card has.
    """

    version: int = 3
    upstream: str
    run: Run
    form: Form
    mask: ExpectedMask | None
    quantized: str | None
    finetuned: str | None
    source: TrainedModel | HubModel | LocalModel | GgufModel
    perplexity: Perplexity
    text: Corpus
    record: str
    dtype: str


def default_form(pattern: str, quantized: bool) -> Form:
    """Return the form in which a model is exported unless another one is named."""
    if pattern in ("2:4", "hybrid"):
        return "packed"
    return "compressed-tensors" if quantized else "dense"


class EvaluateSettings(Section):
    """Settings of the evaluation of a run.

    ``quantized`` and ``finetuned`` are the digests of its low-bit and of its fine-tuned weights.
    """

    version: int = 3
    upstream: str
    experiment: str
    run: Run
    mask: ExpectedMask | None
    quantized: str | None
    finetuned: str | None
    evaluation: Evaluation
    dtype: str
    device: str


class SpeedupSettings(Section):
    """Settings of the speed measurement of a model; ``masks`` and the mask files have the order of ``runs``."""

    version: int = 3
    upstream: str
    experiment: str
    model: str
    runs: list[Run]
    masks: list[ExpectedMask]
    speedup: Speedup
    dtype: str
    device: str


class CompareSettings(Section):
    """Settings of the stage that writes differences.csv from the results of each sample.

    ``digests`` maps `model/run` to the digest of the settings of the run's evaluation.
    """

    version: int = 3
    digests: dict[str, str]


class TabulateSettings(Section):
    """Settings of the stages that write results.csv and tables from records.

    ``runs`` are the expected runs. ``standard`` and ``tables`` list the rows, as `model/row`, of the standard tables
    and of the grid's additional tables. ``digests`` maps `model/run` to the digest of the settings of the run's
    evaluation, and `speedup/model` to the digest of the settings of the speed measurement. ``fewshot`` maps tasks to
    the number of their few-shot examples.
    """

    version: int = TABULATE_VERSION
    digests: dict[str, str]
    models: list[ModelInfo]
    runs: list[Run]
    standard: list[str]
    tables: dict[str, list[str]]
    published: str
    fewshot: dict[str, int] = {}

    @property
    def row_digests(self) -> dict[str, list[str]]:
        """Mapping of `model/row` to the digests of the settings of the evaluations of its runs."""
        found: dict[str, list[str]] = {}
        for run in self.runs:
            row = f"{run.model}/{run.row}"
            found.setdefault(row, []).append(self.digests[f"{run.model}/{run.id}"])
        return found


class FigureSettings(Section):
    """Settings of a figure of one model.

    ``runs`` are those of its curves, in order. ``rows`` are its points, as `model/row`. ``digests`` is as in
    `TabulateSettings`, for the runs that the figure shows.
    """

    version: int = TABULATE_VERSION
    digests: dict[str, str] = {}
    model: ModelInfo
    runs: list[Run] = []
    rows: list[str] = []


class ExploreSettings(Section):
    """Settings of the interactive page.

    ``curves`` are the runs of its training curves, in order. ``digests`` is as in `TabulateSettings`.
    """

    version: int = TABULATE_VERSION
    experiment: str
    digests: dict[str, str]
    models: list[ModelInfo]
    curves: list[Run]


class OverviewSettings(Section):
    """Settings of the pages on cost and environment; ``digests`` is as in `TabulateSettings`."""

    version: int = TABULATE_VERSION
    digests: dict[str, str]
    experiment: str


class SummarySettings(Section):
    """Settings of the stage that writes README.md from records, results.csv and differences.csv.

    ``shown`` are the names of the tables. ``figures`` maps a model's title and a figure's name to the figure's path,
    relative to the page; ``explore`` is the path of the interactive page, empty without one. ``run`` describes the
    experiment.
    """

    version: int = TABULATE_VERSION
    experiment: str
    tabulate: TabulateSettings
    shown: list[str]
    figures: dict[str, dict[str, str]]
    explore: str
    run: dict[str, str]
