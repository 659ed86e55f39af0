"""Top-level sections of an experiment's configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)
from pydantic_core import PydanticCustomError

from patch.calibration.calibration_settings import Calibration
from patch.data.corpus_settings import Corpus, Use
from patch.errors import suggest
from patch.learning.finetuning_settings import Finetuning, Kind
from patch.learning.learning_settings import Recipe
from patch.masks.pattern import Tile
from patch.models.model_settings import Model
from patch.pipeline.config.gpus import GPUS, GpuName
from patch.pipeline.config.imports import Import
from patch.pruning.pruning_settings import Pruning
from patch.quantization.quantization_settings import Quantization
from patch.settings import Section

# Names become parts of paths and of shell commands.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
ID = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]
Seed = Annotated[int, Field(ge=0)]
Fewshot = Annotated[int, Field(ge=0)]
NewTokens = Annotated[int, Field(ge=2)]
# Maximum number of rounds in which the speed of a candidate is measured: the first, and two more if it is noisy.
SPEED_ROUNDS = 3


def _explain_value(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Replace the messages of all types of a varied value by one."""
    try:
        return handler(value)
    except ValidationError:
        message = (
            "a varied value is part of a file name; give a number, true or false, a word of letters, digits, `.`, `_` "
            "and `-`, or a list of numbers such as [4, 0.05]"
        )
        raise PydanticCustomError("varied_value", message) from None


Numbers = Annotated[list[float], Field(min_length=1, max_length=8)]
Value = Annotated[
    bool | int | float | Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=64)] | Numbers,
    WrapValidator(_explain_value),
]


class Perplexity(Section):
    """Perplexity over non-overlapping sequences of the tokenized text; an incomplete last sequence is dropped."""

    use: Use = Field(description="Corpus and split of the text.")
    seqlen: int = Field(4096, ge=4, description="Length of a sequence in tokens.")
    batch_size: int = Field(1, ge=1, description="Sequences per forward pass.")


class Evaluation(Section):
    """Measurements of every run."""

    perplexity: Perplexity = Field(description="Settings of perplexity.")
    tasks: list[str] = Field(
        description="Names of lm-eval tasks, including those in `include_path`; `accuracy` is the unweighted mean of "
        "their `acc`. Tasks with generated answers are measured by `exact_match`, which no mean includes. An empty "
        "list measures perplexity alone.",
    )
    num_fewshot: Fewshot | dict[str, Fewshot] = Field(
        0,
        description="Number of solved examples before each question: one number for all tasks, or a mapping from tasks "
        "to numbers, with 0 for the others.",
    )
    acc_norm: bool = Field(
        False,
        description="Also measure `acc_norm` of the tasks that have it: the choice with the highest log-likelihood per "
        "character is the answer. No mean includes it.",
    )
    include_path: str | None = Field(None, description="Folder of lm-eval task files, with data from `task_use`.")
    task_use: Use | None = Field(None, description="Corpus and split that the data of these tasks is made from.")
    task_samples: int = Field(200, ge=10, description="Questions per task made from text.")
    batch_size: int = Field(32, ge=1, description="Requests per forward pass.")
    limit: int | None = Field(None, ge=1, description="Maximum number of questions per task; by default all.")

    @field_validator("tasks")
    @classmethod
    def _once(cls, tasks: list[str]) -> list[str]:
        repeated = sorted({name for name in tasks if tasks.count(name) > 1})
        if repeated:
            raise ValueError(f"{', '.join(repeated)} is listed more than once; list each task once")
        return tasks

    @field_validator("num_fewshot", mode="wrap")
    @classmethod
    def _numbers(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(
                f"{value!r} is not a number of examples; give 5, or numbers by task: {{arc_challenge: 25}}"
            ) from None

    @field_validator("num_fewshot")
    @classmethod
    def _of_tasks(cls, counts: int | dict[str, int], info: ValidationInfo) -> int | dict[str, int]:
        tasks = info.data.get("tasks", [])
        for name in counts if isinstance(counts, dict) else []:
            if name not in tasks:
                hint = suggest(name, tasks) if tasks else "the list is empty"
                raise ValueError(f"{name!r} is not in `evaluation.tasks`; {hint}")
        return counts

    @property
    def fewshot(self) -> dict[str, int]:
        """Number of few-shot examples of the tasks that have some."""
        counts = self.num_fewshot if isinstance(self.num_fewshot, dict) else dict.fromkeys(self.tasks, self.num_fewshot)
        return {name: counts[name] for name in self.tasks if counts.get(name)}


class Speedup(Section):
    """Generation speed of the 2:4 and hybrid runs of each model relative to the dense model.

    The default sizes are the paper's.
    """

    batch_size: int = Field(16, ge=1, description="Sequences that are generated together.")
    prompt: int = Field(128, ge=1, description="Prompt length in tokens.")
    new_tokens: list[NewTokens] = Field(
        [128], min_length=1, description="Generated tokens per sequence, by greedy decoding; each number is measured."
    )
    repeats: int = Field(
        20, ge=4, description="Timed generations per candidate in each round; their median is reported."
    )
    models: list[str] | None = Field(
        None, min_length=1, description="Names under `models` that are measured; by default all."
    )

    @field_validator("new_tokens")
    @classmethod
    def _distinct(cls, numbers: list[int]) -> list[int]:
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"it is {numbers}; list each number once")
        return numbers


class GridEntry(Section):
    """Block of runs: every combination of method, sparsity, tile, model and seed."""

    methods: list[str] = Field(
        min_length=1,
        description="Names of methods; `patch` stands for patch-joint or patch-tile according to the model's "
        "`variant`, `import` for the masks under `imports`.",
    )
    pattern: str | None = Field(None, description="N:M, `unstructured` or `hybrid`; by default the method's pattern.")
    sparsity: list[float] | None = Field(None, description="Target sparsities in [0, 1); `N:M` patterns imply theirs.")
    tiles: list[Tile] | None = Field(None, description="Tile sizes of hybrid runs; by default the experiment's `tile`.")
    quantization: Literal["absmax", "slim-lora"] | None = Field(
        None, description="Quantize the weights after pruning, with low-rank adapters if `slim-lora`."
    )
    finetune: Kind | None = Field(
        None,
        description="Fine-tune the kept weights after pruning, by the settings in `finetuning`: all of them, or `lora` "
        "adapters that are merged under the mask.",
    )
    models: list[str] | None = Field(None, min_length=1, description="Names under `models`; by default all.")
    seeds: list[Seed] | None = Field(None, min_length=1, description="Seeds; by default the experiment's `seeds`.")
    imports: list[str] | None = Field(
        None, min_length=1, description="Names under `imports` for the method `import`; by default all of the models."
    )
    vary: dict[str, Annotated[list[Value], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="Ablation: keys of a learning run, or `recipe`, each with a list of values; a value of a pair is a "
        "list itself.",
    )
    table: Name | None = Field(None, description="Separate table of these runs; the standard tables then omit them.")

    @field_validator("vary", mode="before")
    @classmethod
    def _without_use(cls, value: Any) -> Any:
        if isinstance(value, dict) and "use" in value:
            raise ValueError(
                "`use` is a corpus and a split, which cannot be part of a file name; write a configuration for each, "
                "which `extends` a common one and sets `learning.common.use`"
            )
        return value

    @field_validator("pattern", mode="before")
    @classmethod
    def _quoted(cls, value: Any) -> Any:
        if isinstance(value, int):
            raise ValueError(f'YAML reads an unquoted N:M as the number {value}; write it in quotes: "2:4"')
        return value


class LearningOverride(Section):
    """Keys for the runs that meet all given conditions."""

    method: str | None = Field(None, description="Condition: method.")
    model: str | None = Field(None, description="Condition: model.")
    sparsity: float | None = Field(None, description="Condition: target sparsity.")
    set: dict[str, Any] = Field(description="Keys of a learning run.")


class LearningConfig(Section):
    """Settings of learning runs, merged in the order `recipe`, `common`, `methods`, `overrides`."""

    recipe: Recipe = Field(
        "paper",
        description="Defaults of the learned methods: those of the paper, or those of its public code "
        "(docs/deviations.md lists the keys).",
    )
    common: dict[str, Any] = Field(default_factory=dict, description="Keys of a learning run for all methods.")
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict, description="Keys of a learning run by method.")
    overrides: list[LearningOverride] = Field(default_factory=list, description="Keys for selected runs, in order.")


class Resources(Section):
    """Resources of jobs."""

    device: Literal["cpu", "cuda"] = Field("cpu", description="Device of pruning, learning and evaluation.")
    threads: int = Field(1, ge=1, description="CPU threads of each process of a job that computes on the CPU.")
    learn_gpus: int = Field(
        1,
        ge=1,
        description="GPUs per node of a learning job, with one process per GPU; on `cpu`, processes per node. The "
        "processes divide the micro-batches of a step evenly. Those of ProxSparse that cannot divide its batch repeat "
        "the same micro-batches. Each process holds a shard of the pattern logits, or of ProxSparse's weights, which "
        "joint learning and ProxSparse at 7B need (`python -m patch memory`). The masks equal those of one process up "
        "to rounding, so a change does not trigger a rerun. An evaluation of a model that does not fit one GPU "
        "divides its blocks between the smallest number of GPUs that holds it, up to this one.",
    )
    shard_weights: Literal["auto"] | bool = Field(
        "auto",
        description="Let the processes of mask learning shard the frozen weights of the pruned layers, too, each with "
        "the rows of its logits: `true`, `false`, or `auto`, if a GPU cannot hold the model otherwise. The masks do "
        "not change. ProxSparse always shards its weights.",
    )
    offload: Literal["auto"] | bool = Field(
        "auto",
        description="Keep the gradients and moments of the pattern logits in the host's memory, from where they are "
        "copied to the GPU one layer at a time: `true`, `false`, or `auto`, if a GPU cannot hold the run otherwise. "
        "The masks do not change.",
    )
    learn_nodes: int = Field(1, ge=1, description="Nodes of a learning job; more than one requires SLURM.")
    gpu: GpuName = Field(
        "H100",
        description="Model of the GPUs, for the estimates of memory and time; A100 is the card with 80 GB. For another "
        "card, give a similar one and `gpu_memory_gb`.",
    )
    gpu_memory_gb: float | None = Field(None, gt=0, description="Memory of one GPU in GB; by default that of `gpu`.")
    cpu_gflops: float = Field(40.0, gt=0, description="Sustained throughput of one CPU thread in GFLOP/s.")
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = Field(
        default_factory=list,
        description="Experiment trackers of learning runs; `pip install -e '.[watch]'` installs all three. wandb runs "
        "offline unless the variable `WANDB_MODE` is set. A change does not trigger a rerun.",
    )

    @property
    def memory_gb(self) -> float:
        """Memory of one GPU in GB."""
        return GPUS[self.gpu].memory_gb if self.gpu_memory_gb is None else self.gpu_memory_gb


class Experiment(Section):
    """Configuration of one experiment."""

    extends: str | None = Field(
        None,
        description="Base configuration file, as a path from the folder of this file: mappings are merged, lists and "
        "sections of another `kind` are replaced, and the list of a key `KEY+` is appended to that of `KEY`.",
    )
    experiment: ID = Field(description="Name of the experiment; results go to `results/<experiment>`.")
    reuse: list[ID] = Field(default_factory=list, description="Experiments whose masks with equal settings are reused.")
    corpora: dict[Name, Corpus] = Field(description="Sources of text.")
    models: dict[Name, Model] = Field(min_length=1, description="Models of the grid.")
    calibration: Calibration = Field(description="Calibration text of the one-shot methods.")
    pruning: Pruning = Field(default_factory=Pruning, description="Settings of the one-shot methods.")
    quantization: Quantization = Field(default_factory=Quantization, description="Settings of quantized runs.")
    learning: LearningConfig = Field(description="Settings of mask learning.")
    finetuning: Finetuning | None = Field(None, description="Settings of the runs with `finetune`; by default, none.")
    imports: dict[Name, Import] = Field(default_factory=dict, description="Masks that were made elsewhere.")
    evaluation: Evaluation = Field(description="Settings of the evaluation.")
    speedup: Speedup | None = Field(None, description="Settings of the speed measurement; by default, none.")
    grid: list[GridEntry] = Field(min_length=1, description="Blocks of runs.")
    seeds: list[Seed] = Field([0], min_length=1, description="Seeds of calibration and learning.")
    tile: Tile = Field(128, description="Side of a tile in weights, a multiple of 4; `matrix` is one tile per layer.")
    published: str = Field("config/published.json", description="File of the paper's numbers.")
    resources: Resources = Field(default_factory=Resources, description="Device, threads and GPUs of jobs.")
