"""What each stage is told: everything in the configuration that its result depends on, and no more.

A spec is written into its job as a parameter, so that a change of any value in it, and of nothing
else, runs the job again. Editing code does not: raise the stage's number in `VERSIONS` when an
algorithm changes what it computes. `upstream` holds a digest of the specs that the inputs come from.
"""

from __future__ import annotations

from typing import Literal

from patch.data.settings import Corpus, Split
from patch.learning.settings import Learning
from patch.models.settings import GgufModel, HubModel, LocalModel, TrainedModel
from patch.pipeline.config.experiment import Evaluation, Speedup
from patch.pipeline.config.imports import FileMask, HubMask
from patch.pipeline.runs.cell import Cell
from patch.pruning.settings import Pruning
from patch.quantization.settings import Quantization
from patch.settings import Section

VERSIONS = {
    "corpus": 1,
    "tokenizer": 1,
    "model": 1,
    "windows": 1,
    "tasks": 1,
    "statistics": 2,
    "mask": 1,
    "import": 2,
    "prune": 3,
    "learn": 3,
    "quantize": 2,
    "export": 2,
    "evaluate": 3,
    "speedup": 2,
    "compare": 2,
    "tabulate": 4,
}


class ExpectedMask(Section):
    """The mask that a job reads; ``digest`` is that of the settings that made it, its model and its calibration."""

    method: str
    pattern: str
    sparsity: float
    tile: int | None
    digest: str


class CorpusSpec(Section):
    """Text into parts."""

    version: int = VERSIONS["corpus"]
    corpus: Corpus


class TokenizerSpec(Section):
    """Train part -> byte-level BPE."""

    version: int = VERSIONS["tokenizer"]
    upstream: str
    vocab_size: int


class ModelSpec(Section):
    """Where a model's folder comes from."""

    version: int = VERSIONS["model"]
    upstream: str
    source: TrainedModel | HubModel | LocalModel | GgufModel


class WindowsSpec(Section):
    """Text -> token windows."""

    version: int = VERSIONS["windows"]
    upstream: str
    kind: Literal["calibration", "packed", "joined"]
    split: Split
    seqlen: int
    samples: int | None = None
    seed: int | None = None


class TasksSpec(Section):
    """Data of the zero-shot tasks."""

    version: int = VERSIONS["tasks"]
    upstream: str
    tasks: list[str]
    include_path: str | None
    split: Split | None
    samples: int


class MaskSpec(Section):
    """A file of masks from a hub."""

    version: int = VERSIONS["mask"]
    source: HubMask


class ImportSpec(Section):
    """A mask that was made elsewhere, checked; ``upstream`` stands for the file and the model."""

    version: int = VERSIONS["import"]
    upstream: str
    source: HubMask | FileMask
    method: str
    pattern: str
    tile: int | None


class StatisticsSpec(Section):
    """Inputs of a dense model's layers."""

    version: int = VERSIONS["statistics"]
    upstream: str
    gram: bool
    batch_size: int
    dtype: str
    device: str


class PruneSpec(Section):
    """One-shot pruning."""

    version: int = VERSIONS["prune"]
    upstream: str
    model: str
    method: str
    pattern: str
    sparsity: float
    seed: int
    batch_size: int
    settings: Pruning
    dtype: str
    device: str


class LearnSpec(Section):
    """Mask learning."""

    version: int = VERSIONS["learn"]
    upstream: str
    model: str
    method: str
    pattern: str
    sparsity: float
    tile: int | None
    seed: int
    masks: dict[str, ExpectedMask] = {}
    settings: Learning
    dtype: str
    device: str


class QuantizeSpec(Section):
    """Low-bit weights of a pruned cell; ``method`` is `absmax` or `slim-lora`."""

    version: int = VERSIONS["quantize"]
    upstream: str
    method: str
    mask: ExpectedMask | None
    batch_size: int
    settings: Quantization
    dtype: str
    device: str


class ExportSpec(Section):
    """A cell as a folder that transformers loads."""

    version: int = VERSIONS["export"]
    upstream: str
    mask: ExpectedMask
    dtype: str


class CellInfo(Section):
    """A cell as it stands in a record."""

    id: str
    model: str
    method: str
    pattern: str
    sparsity: float
    tile: int | None
    seed: int
    quantization: str | None = None
    variant: str | None = None


class EvaluateSpec(Section):
    """Perplexity and zero-shot accuracy of one cell; ``quantized`` is the digest of its low-bit weights."""

    version: int = VERSIONS["evaluate"]
    upstream: str
    experiment: str
    cell: CellInfo
    mask: ExpectedMask | None
    quantized: str | None
    evaluation: Evaluation
    dtype: str
    device: str


class SpeedupSpec(Section):
    """Speed of a dense model and of its cells; ``masks`` and the mask files are in the order of the cells."""

    version: int = VERSIONS["speedup"]
    upstream: str
    experiment: str
    model: str
    cells: list[CellInfo]
    masks: list[ExpectedMask]
    settings: Speedup
    dtype: str
    device: str


class CompareSpec(Section):
    """Results of each sample -> differences.csv.

    ``digests``: `model/cell` -> digest of the settings of the cell's evaluation.
    """

    version: int = VERSIONS["compare"]
    digests: dict[str, str]


class TabulateSpec(Section):
    """Records -> results.csv and tables.

    ``cells`` should be there; ``standard`` and ``tables`` say which rows, as `model/row`, the standard tables and the
    grid's own ones have. ``digests``: `model/cell` -> digest of the settings of the cell's evaluation, and
    `speedup/model` -> that of the measurement of speed.
    """

    version: int = VERSIONS["tabulate"]
    digests: dict[str, str]
    models: list[dict[str, str | int | bool | None]]
    cells: list[CellInfo]
    standard: list[str]
    tables: dict[str, list[str]]
    published: str

    @property
    def row_digests(self) -> dict[str, list[str]]:
        """`model/row` -> digests of the settings of the evaluations of its runs."""
        found: dict[str, list[str]] = {}
        for cell in self.cells:
            row = f"{cell.model}/{Cell.of(cell).row}"
            found.setdefault(row, []).append(self.digests[f"{cell.model}/{cell.id}"])
        return found


class FigureSpec(Section):
    """A figure of one model; ``labels`` name its curves, in order, ``rows`` its points, as `model/row`.

    ``digests`` as in `TabulateSpec`, of what it shows.
    """

    version: int = VERSIONS["tabulate"]
    digests: dict[str, str] = {}
    model: dict[str, str | int | bool | None]
    labels: list[str] = []
    rows: list[str] = []


class OverviewSpec(Section):
    """Records -> pages on cost and environment; ``digests`` as in `TabulateSpec`."""

    version: int = VERSIONS["tabulate"]
    digests: dict[str, str]
    experiment: str


class SummarySpec(Section):
    """Records, results.csv and differences.csv -> README.md.

    ``shown`` are the tables, ``figures`` a model's title -> name -> path from the page, ``run`` says what was run.
    """

    version: int = VERSIONS["tabulate"]
    experiment: str
    tabulate: TabulateSpec
    shown: list[str]
    figures: dict[str, dict[str, str]]
    run: dict[str, str]
