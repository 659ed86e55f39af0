"""Conservative estimates of the disk space of jobs in MB, from the sizes of models and corpora."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from patch.data.corpus_settings import HubSource
from patch.models.model_settings import GgufModel, LocalModel, TrainedModel
from patch.models.shapes import Shape, linear_shapes, model_shape, parameters, prunable_parameters
from patch.pipeline.resources.memory import BYTES, finetuned_parameters
from patch.pipeline.resources.text_size import ARROW, CHARACTERS_PER_TOKEN, MB, corpus_mb
from patch.pipeline.runs.plan import Plan
from patch.pipeline.runs.run import Run
from patch.pipeline.runs.store import Sequences, Statistics

# Size of a corpus' parquet files as a multiple of the download of a hub data set.
PARQUET = 1.5
# The data sets of the paper's eight zero-shot tasks, downloads and arrow files together, rounded up.
TASKS_MB = 1000
# Two checkpoints are kept, and a third is complete before the oldest is removed: see patch/learning/checkpoint.py.
CHECKPOINTS = 3


@dataclass(frozen=True)
class Space:
    """Disk space of a job in MB.

    Attributes:
        kept: Space of the outputs in `work/` or `results/`.
        scratch: Space that is released when the job ends.
        cache: Space that stays in use in the cache of the hub's libraries.
    """

    kept: float = 0.0
    scratch: float = 0.0
    cache: float = 0.0


class DiskModel:
    """Disk space estimates of the jobs of an experiment."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.experiment = plan, plan.experiment
        self._shape: Callable[[str], Shape] = cache(lambda model: model_shape(model, self.experiment.models[model]))

    def corpus(self, corpus: str) -> Space:
        """Return the space of a corpus' splits, and for a hub corpus also of its arrow files and the download."""
        source = self.experiment.corpora[corpus].source
        if isinstance(source, HubSource):
            download = 1000 * source.size_gb
            return Space(kept=PARQUET * download, scratch=ARROW * download, cache=download)
        return Space(kept=corpus_mb(self.plan.store, corpus) or 0.0)

    def model(self, model: str) -> Space:
        """Return the space of a model's weights, and of its training's checkpoints."""
        shape, entry = self._shape(model), self.experiment.models[model]
        if isinstance(entry.source, LocalModel):
            return Space(kept=folder_size(entry.source.path))
        if isinstance(entry.source, TrainedModel):
            # In fp32, Muon has one moment for each weight of the blocks, and AdamW has two for each other weight.
            moments = prunable_parameters(shape) + 2 * (parameters(shape) - prunable_parameters(shape))
            state = 4 * (parameters(shape) + moments)
            return Space(kept=4 * parameters(shape) / MB, scratch=CHECKPOINTS * state / MB)
        size = BYTES["bfloat16" if isinstance(entry.source, GgufModel) else entry.dtype]
        return Space(kept=size * parameters(shape) / MB)

    def fetched_tasks(self, _: None = None) -> Space:
        """Return the space of the data sets of lm-eval's tasks."""
        return Space(cache=TASKS_MB)

    def sequences(self, sequences: Sequences) -> Space:
        """Return the space of token ids: two bytes each, or four if the vocabulary needs more than two."""
        store = self.plan.store
        model = next(name for name in self.experiment.models if store.tokenizer_path(name) == sequences.tokenizer)
        size = 2 if self._shape(model).vocab_size <= 1 << 16 else 4
        settings = sequences.settings
        bounds = [settings.samples * settings.seqlen] if settings.samples else []
        corpus = next(name for name in self.experiment.corpora if store.corpus_path(name) == sequences.corpus)
        text = corpus_mb(store, corpus)
        if text is not None:
            bounds.append(text * MB / CHARACTERS_PER_TOKEN)
        return Space(kept=size * min(bounds, default=0.0) / MB)

    def mask(self, run: Run) -> Space:
        """Return the space of a mask: one bit for each weight and one for each tile."""
        shape = self._shape(run.model)
        return Space(kept=(prunable_parameters(shape) + _tiles(shape, run)) / 8 / MB)

    def prune(self, run: Run) -> Space:
        """Return the space of a mask, and of the updated weights that the job caches if they are read."""
        weights = self.weights(run).kept if run in self.plan.updated_runs else 0.0
        return Space(kept=self.mask(run).kept, scratch=weights)

    def fetched_mask(self, name: str) -> Space:
        """Return the space of a downloaded mask: one bit for each weight, which hardly compresses."""
        size = prunable_parameters(self._shape(self.experiment.imports[name].model)) / 8 / MB
        return Space(kept=size, cache=size)

    def learn(self, run: Run) -> Space:
        """Return the space of a mask, and of the checkpoints that are still to be written.

        A checkpoint has the learned parameters and two Adam moments (MaskPro: none) in fp32, and with `keep: best` the
        best mask, once for each process.
        """
        shape = self._shape(run.model)
        logits = 0 if run.method == "patch-tile" else prunable_parameters(shape) // 4 * 6
        learned = parameters(shape) if run.method == "proxsparse" else logits + _tiles(shape, run)
        if run.method == "maskpro":
            learned = prunable_parameters(shape) // 3
        mask, grid = self.mask(run).kept, self.plan.grid
        best = CHECKPOINTS * grid.processes * mask if grid.learning(run).keep == "best" else 0.0
        return Space(kept=mask, scratch=self._checkpoints(run, learned) + best)

    def finetune(self, run: Run) -> Space:
        """Return the space of fine-tuned weights, and of the checkpoints that are still to be written."""
        settings = self.plan.grid.finetuning(run)
        trained = finetuned_parameters(self._shape(run.model), run.finetune, settings)
        start = self.weights(run).kept if run.definition.updates_weights else 0.0
        return Space(kept=self.weights(run).kept, scratch=start + self._checkpoints(run, trained))

    def _checkpoints(self, run: Run, trained: int) -> float:
        return max(0.0, CHECKPOINTS * 4 * 3 * trained / MB - folder_size(self.plan.layout.checkpoints(run)))

    def statistics(self, statistics: Statistics) -> Space:
        """Return the space of a dense model's input statistics, in fp32 for each distinct input tensor."""
        shape, gram = self._shape(statistics.model), statistics.settings.gram
        # A block has four input tensors: hidden states before attention and MLP, and inputs of their last layers.
        layers = linear_shapes(shape)
        widths = [shape.hidden_size] * 2 + [layers[name][1] for name in ("o_proj", "down_proj")]
        return Space(kept=4 * shape.num_hidden_layers * sum(n * n + n if gram else n for n in widths) / MB)

    def quantize(self, run: Run) -> Space:
        """Return the space of low-bit weights, scales and adapters."""
        shape, settings = self._shape(run.model), self.experiment.quantization
        size = prunable_parameters(shape) * (settings.bits / 8 + 4 / settings.group_size)
        if run.quantization == "slim-lora":
            ranks = [(settings.rank_ratio * min(layer), sum(layer)) for layer in linear_shapes(shape).values()]
            size += 4 * shape.num_hidden_layers * sum(rank * sides for rank, sides in ranks)
        return Space(kept=size / MB)

    def weights(self, run: Run) -> Space:
        """Return the space of updated or fine-tuned weights."""
        size = BYTES[self.experiment.models[run.model].dtype]
        return Space(kept=size * prunable_parameters(self._shape(run.model)) / MB)

    def export(self, run: Run) -> Space:
        """Return the space of an exported model in its largest form: dense, with a mask of one bit for each weight."""
        shape, size = self._shape(run.model), BYTES[self.experiment.models[run.model].dtype]
        return Space(kept=(size * parameters(shape) + prunable_parameters(shape) / 8) / MB)


def folder_size(folder: Path | str) -> float:
    """Return the size of a folder's files in MB, or 0 if the folder does not exist."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / MB


def _tiles(shape: Shape, run: Run) -> int:
    if not run.tile:
        return 0
    grids = [[side // min(side, run.tile) for side in layer] for layer in linear_shapes(shape).values()]
    return shape.num_hidden_layers * sum(map(math.prod, grids))
