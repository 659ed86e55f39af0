"""The configuration: what a YAML file may say, checked before any work starts."""

from patch.config.base import Section
from patch.config.corpora import Corpus, FilesSource, HubSource, PackageSource, Use
from patch.config.experiment import Evaluation, Experiment, GridEntry, Perplexity, Resources, Speedup
from patch.config.imports import FileMask, HubMask, Import
from patch.config.learning import Learning
from patch.config.load import extended, load_experiment, read_yaml, validate_experiment
from patch.config.models import (
    GgufModel,
    HubModel,
    LocalModel,
    Model,
    TokenizerConfig,
    TrainedModel,
    Training,
)
from patch.config.pruning import Calibration, Pruning, Quantization

__all__ = [
    "Calibration",
    "Corpus",
    "Evaluation",
    "Experiment",
    "FileMask",
    "FilesSource",
    "GgufModel",
    "GridEntry",
    "HubMask",
    "HubModel",
    "HubSource",
    "Import",
    "Learning",
    "LocalModel",
    "Model",
    "PackageSource",
    "Perplexity",
    "Pruning",
    "Quantization",
    "Resources",
    "Section",
    "Speedup",
    "TokenizerConfig",
    "TrainedModel",
    "Training",
    "Use",
    "extended",
    "load_experiment",
    "read_yaml",
    "validate_experiment",
]
