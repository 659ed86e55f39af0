"""Top-level sections of an experiment's configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from patch.calibration.settings import Calibration
from patch.data.settings import Corpus, Use
from patch.learning.settings import Learning
from patch.masks.tile_size import Tile
from patch.models.settings import Model
from patch.pipeline.config.imports import Import
from patch.pruning.settings import Pruning
from patch.quantization.settings import Quantization
from patch.settings import Section

# Names become parts of paths and of shell commands.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
ID = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]
Seed = Annotated[int, Field(ge=0)]
# A value that an ablation varies becomes part of a path.
Value = bool | int | float | Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=64)]


class Perplexity(Section):
    """Perplexity over non-overlapping sequences of one tokenised text; the tail is dropped."""

    use: Use = Field(description="Corpus and part.")
    seqlen: int = Field(4096, ge=4, description="Tokens per sequence.")
    batch_size: int = Field(1, ge=1, description="Sequences per forward pass.")


class Evaluation(Section):
    """Measurements on every run."""

    perplexity: Perplexity = Field(description="Perplexity.")
    tasks: list[str] = Field(
        min_length=1,
        description="lm-eval task names, with `include_path` names of that folder; `accuracy` is the unweighted mean "
        "of their `acc`.",
    )
    include_path: str | None = Field(
        None, description="Folder of lm-eval YAML files whose data is made from `task_use`."
    )
    task_use: Use | None = Field(None, description="Held-out text that the data of those tasks is made from.")
    task_samples: int = Field(200, ge=10, description="Questions per task made from text.")
    batch_size: int = Field(32, ge=1, description="Requests per forward pass.")
    limit: int | None = Field(None, ge=1, description="Questions per task; without it, all.")

    @field_validator("tasks")
    @classmethod
    def _once(cls, tasks: list[str]) -> list[str]:
        repeated = sorted({name for name in tasks if tasks.count(name) > 1})
        if repeated:
            raise ValueError(f"{', '.join(repeated)} stands there more than once; each task counts once in the mean")
        return tasks


class Speedup(Section):
    """Speed of generation with the masks, measured on each model's 2:4 and hybrid runs beside the dense model.

    The sizes are by default the paper's.
    """

    batch_size: int = Field(16, ge=1, description="Sequences that are generated together.")
    prompt: int = Field(128, ge=1, description="Tokens that each of them starts from.")
    new_tokens: int = Field(128, ge=2, description="Tokens that are added to each, greedily.")
    repeats: int = Field(20, ge=4, description="Runs of each run, in turn with those of all others; medians of them.")


class GridEntry(Section):
    """A block of runs: every method x sparsity x tile x model x seed."""

    methods: list[str] = Field(
        min_length=1,
        description="Methods; `patch` is patch-joint or patch-tile as the model's `variant` says, `import` a mask of "
        "`imports`.",
    )
    pattern: str | None = Field(
        None, description="`2:4` or another N:M, `unstructured`, or `hybrid`; by default what the method is made for."
    )
    sparsity: list[float] | None = Field(None, description="Target sparsities in [0, 1); N:M fixes its own.")
    tiles: list[Tile] | None = Field(
        None, description="Tile sizes of hybrid runs, `matrix` for one a layer; by default the experiment's `tile`."
    )
    quantization: Literal["absmax", "slim-lora"] | None = Field(
        None, description="Quantise the weights after pruning, without or with low-rank compensation."
    )
    models: list[str] | None = Field(None, min_length=1, description="Names under `models`; by default all.")
    seeds: list[Seed] | None = Field(None, min_length=1, description="Seeds; by default the experiment's.")
    imports: list[str] | None = Field(
        None, min_length=1, description="Names under `imports`, for the method `import`; by default all of the models'."
    )
    vary: dict[str, Annotated[list[Value], Field(min_length=1)]] = Field(
        default_factory=dict, description="Key of a learning run -> values: an ablation, a run for each value."
    )
    table: Name | None = Field(
        None, description="A table of these runs alone, by this name; they are not in the standard ones then."
    )

    @field_validator("pattern", mode="before")
    @classmethod
    def _quoted(cls, value: Any) -> Any:
        if isinstance(value, int):
            raise ValueError(f'YAML reads an unquoted N:M as the number {value}; write it in quotes: "2:4"')
        return value


class LearningConfig(Section):
    """Learning settings: `common`, then the method's, then each override that matches, in order."""

    common: dict[str, Any] = Field(
        default_factory=dict, description="Keys of a learning run that hold for all methods."
    )
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict, description="Method -> keys.")
    overrides: list[LearningOverride] = Field(default_factory=list, description="Exceptions for some runs.")


class LearningOverride(Section):
    """Keys for the runs that match every given condition."""

    method: str | None = Field(None, description="Only this method.")
    model: str | None = Field(None, description="Only this model.")
    sparsity: float | None = Field(None, description="Only this target sparsity.")
    set: dict[str, Any] = Field(description="Keys of a learning run.")


class Resources(Section):
    """Resources of jobs."""

    device: Literal["cpu", "cuda"] = Field("cpu", description="Where prune, learn and evaluate run.")
    threads: int = Field(1, ge=1, description="CPU threads of a job that computes on the CPU; of each process.")
    learn_gpus: int = Field(
        1,
        ge=1,
        description="GPUs on each node of a learn job, one process each; on `cpu`, processes on each node. They share "
        "the micro-batches of a step evenly and hold a share of the pattern logits each, which joint learning at 7B "
        "needs (`python -m patch memory`). The masks are those of one process but for rounding, so a change reruns "
        "nothing.",
    )
    learn_nodes: int = Field(1, ge=1, description="Nodes of a learn job; more than one need SLURM.")
    gpu_memory_gb: float = Field(80.0, gt=0, description="Memory of one GPU.")
    gpu_tflops: float = Field(400.0, gt=0, description="Dense bf16 TFLOP/s that a GPU sustains in matrix products.")
    cpu_gflops: float = Field(40.0, gt=0, description="GFLOP/s that one CPU thread sustains.")
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = Field(
        default_factory=list,
        description="Where learning runs can be watched besides their logs; `pip install -e '.[watch]'` brings all "
        "three. wandb is offline unless the variable `WANDB_MODE` says otherwise. A change reruns nothing.",
    )


class Experiment(Section):
    """One configuration file."""

    extends: str | None = Field(
        None, description="Another configuration, on top of which this one goes: mappings are merged, lists replaced."
    )
    experiment: ID = Field(description="Name; results go to `results/<experiment>`.")
    reuse: list[ID] = Field(
        default_factory=list,
        description="Experiments whose masks are taken where they were made with the same settings.",
    )
    corpora: dict[Name, Corpus] = Field(description="Sources of text.")
    models: dict[Name, Model] = Field(min_length=1, description="Models of the grid.")
    calibration: Calibration = Field(description="Input statistics of the one-shot methods.")
    pruning: Pruning = Field(default_factory=Pruning, description="Settings of the one-shot methods.")
    quantization: Quantization = Field(
        default_factory=Quantization, description="Settings of the runs that are quantised."
    )
    learning: LearningConfig = Field(description="Settings of the learned methods.")
    imports: dict[Name, Import] = Field(default_factory=dict, description="Masks that were made elsewhere.")
    evaluation: Evaluation = Field(description="What is measured.")
    speedup: Speedup | None = Field(None, description="How speed is measured; without it, it is not.")
    grid: list[GridEntry] = Field(min_length=1, description="Which runs exist.")
    seeds: list[Seed] = Field([0], min_length=1, description="Seeds of calibration and learning.")
    tile: Tile = Field(
        128, description="Side of a square tile, in weights; a multiple of 4. `matrix`: one tile a layer."
    )
    published: str = Field("config/published.json", description="The paper's numbers.")
    resources: Resources = Field(default_factory=Resources, description="What jobs may ask for.")


LearningConfig.model_rebuild()
__all__ = ["Experiment", "Evaluation", "GridEntry", "Learning", "LearningConfig", "Perplexity", "Resources", "Speedup"]
