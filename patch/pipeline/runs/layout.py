"""Path layout of an experiment's outputs; all other modules get result paths from here."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from patch.errors import InputError
from patch.pipeline.runs.run import Run
from patch.settings import Section

STORE = "work"


def digest(value: Any, length: int = 8) -> str:
    """Return a short hash of a JSON value, for the names of artifacts that experiments share."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


def settings_digest(settings: Section) -> str:
    """Return a short hash of a stage's settings."""
    return digest(settings.model_dump(mode="json"))


def input_path(path: str, key: str) -> str:
    """Check that a user's path can be a rule's input, and return it.

    Args:
        path: Path from the configuration.
        key: Key of the path in the configuration, for the message.

    Raises:
        InputError: The path has braces, which Snakemake reads as wildcards.
    """
    if "{" in path or "}" in path:
        raise InputError(
            f"`{key}` is {path!r}: Snakemake takes names in braces for wildcards; rename the file or folder"
        )
    return path


class Layout:
    """Output paths of one experiment, relative to the workflow's folder."""

    def __init__(self, experiment: str) -> None:
        self.root = f"results/{experiment}"
        self.scratch = f"{STORE}/{experiment}"

    def mask(self, run: Run) -> str:
        """Return the path of the bit-packed mask; a derived run uses the mask of its pruned run."""
        return f"{self.root}/masks/{run.model}/{run.pruned.id}.safetensors"

    def weights(self, run: Run) -> str:
        """Return the path of the updated weights, which are removed after the last job that reads them."""
        return f"{self.scratch}/weights/{run.model}/{run.pruned.id}.safetensors"

    def cached_weights(self, run: Run) -> str:
        """Return the path of the cached updated weights between pruning and evaluation.

        The file is not an output of a rule; the stage `update` moves it to `weights`.
        """
        return f"{self.scratch}/updated/{run.model}/{run.id}.safetensors"

    def finetuned(self, run: Run) -> str:
        """Return the path of the fine-tuned weights, which are kept because they take long to make again."""
        return f"{self.root}/finetuned/{run.model}/{run.id}.safetensors"

    def quantized(self, run: Run) -> str:
        """Return the path of the low-bit weights and adapters, which are removed after the evaluation."""
        return f"{self.scratch}/quantized/{run.model}/{run.id}.safetensors"

    def curve(self, run: Run) -> str:
        """Return the path of the training curve, a JSON Lines file with one line for each step."""
        return f"{self.root}/curves/{run.model}/{run.id}.jsonl"

    def checkpoints(self, run: Run) -> str:
        """Return the folder of the checkpoints of a learning or fine-tuning run.

        It is not an output of a rule, because Snakemake removes the outputs of a failed job.
        """
        return f"{self.scratch}/checkpoints/{run.model}/{run.id}"

    def record(self, run: Run) -> str:
        """Return the path of the record, which has the metrics of a run."""
        return f"{self.root}/records/{run.model}/{run.id}.json"

    def export(self, run: Run) -> str:
        """Return the folder of the exported model of a run."""
        return f"{self.root}/export/{run.model}/{run.id}"

    def samples(self, run: Run) -> str:
        """Return the path of the metrics of each sequence and question."""
        return f"{self.root}/samples/{run.model}/{run.id}.json"

    def speedup(self, model: str) -> str:
        """Return the path of the speed measurements of a model and its runs."""
        return f"{self.root}/speedup/{model}.json"

    @property
    def self_test(self) -> str:
        """Path of the result of the kernels' self-test on a GPU."""
        return f"{self.root}/self-test.json"

    @property
    def findings(self) -> str:
        """Path of the findings, one in each line, which the first page of the report shows."""
        return f"{self.root}/findings.txt"

    @property
    def forecast(self) -> str:
        """Path of the resource forecast that `snakemake` writes when a run starts."""
        return f"{self.scratch}/forecast.json"

    def partial_record(self, run: Run) -> str:
        """Return the path of the metrics that an unfinished evaluation has measured so far.

        It is not an output of a rule, because Snakemake removes the outputs of a failed job.
        """
        return f"{self.scratch}/evaluations/{run.model}/{run.id}.json"
