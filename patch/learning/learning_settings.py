"""Settings of mask learning: maskllm, patch-joint, patch-tile, proxsparse and maskpro."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from patch.data.corpus_settings import Use
from patch.errors import InputError
from patch.settings import Section

Ramp = tuple[float, float]
# Pairs of the values at the first and last step.
RAMPS = ("pattern_temperature", "tile_temperature", "pattern_scale", "tile_scale")
Recipe = Literal["paper", "public-code"]


class Learning(Section):
    """Settings of a learning run. The defaults are those of patch-joint; `METHOD_DEFAULTS` has the other methods'."""

    use: Use | None = Field(None, description="Corpus and split to learn on; required in a configuration.")
    steps: int = Field(2000, ge=1, description="Number of optimizer steps.")
    batch_size: int = Field(256, ge=1, description="Sequences per optimizer step.")
    micro_batch_size: int = Field(1, ge=1, description="Sequences per forward and backward pass; divides `batch_size`.")
    seqlen: int = Field(4096, ge=4, description="Length of a sequence in tokens.")
    cut_attention: bool = Field(
        False,
        description="Restrict attention and prediction to the document of a token; ignored by ProxSparse and MaskPro.",
    )
    append_eos: bool = Field(
        True,
        description="Append an end-of-sequence token to each document of the packed sequences; otherwise the next "
        "document follows directly.",
    )
    lr: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        1e-3,
        description="Peak learning rate of AdamW; it decays to zero by a cosine (ProxSparse: linearly). MaskPro has a "
        "constant rate and no AdamW. `auto` is the rate that fits the tokens of the run (ProxSparse and MaskPro: the "
        "published rate).",
    )
    warmup_steps: int = Field(5, ge=0, description="Steps of linear warm-up.")
    warmup_from_zero: bool = Field(
        False, description="Start the warm-up with a learning rate of zero instead of `lr / warmup_steps`."
    )
    betas: tuple[float, float] = Field((0.9, 0.95), description="Decay rates of AdamW's moment estimates.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of the logits.")
    max_grad_norm: float | None = Field(
        None,
        gt=0,
        description="Clip the gradient of all logits to this norm; by default, not at all. Ignored by ProxSparse, "
        "whose norm is 1, and by MaskPro.",
    )

    pattern_temperature: Ramp = Field(
        (4.0, 0.05), description="Temperature tau of the 2:4 Gumbel-softmax at the first and last step."
    )
    pattern_scale: Ramp = Field((100.0, 500.0), description="Scale kappa of the pattern logits, first and last step.")
    pattern_prior: str = Field(
        "sparsegpt",
        description="One-shot method whose 2:4 mask initializes the pattern logits, or `none` (not for MaskPro).",
    )
    pattern_prior_strength: float = Field(
        3.0, ge=0, description="Strength of this initialization, in units of `pattern_std`."
    )
    pattern_std: float = Field(0.01, gt=0, description="Standard deviation of the initial pattern logits.")
    pattern_noise: Literal["add", "replace"] = Field(
        "add",
        description="Initial pattern logits: `add` this initialization to the noise, or `replace` the noise by it.",
    )

    tile_temperature: Ramp = Field((2.0, 0.05), description="Temperature tau of the tiles, first and last step.")
    tile_scale: Ramp = Field((25.0, 350.0), description="Scale kappa of the tile logits, first and last step.")
    tile_prior: str = Field(
        "sparsegpt",
        description="One-shot method whose unstructured mask at the target sparsity initializes the tile logits; or "
        "`random`, or `none`.",
    )
    tile_prior_strength: float = Field(
        3.0, ge=0, description="Strength of this initialization, in units of `tile_std`."
    )
    tile_std: float = Field(0.014, gt=0, description="Standard deviation of the initial tile logits.")
    frozen_mask: str = Field(
        "maskllm",
        description="Frozen 2:4 mask of the sparse tiles of patch-tile: a one-shot or learned method, or `import` for "
        "the model's 2:4 mask under `imports`.",
    )

    sparsity_reg: float = Field(
        7.0, ge=0, description="Weight lambda 1 of the sparsity regularizer |density - target|."
    )
    weight_reg: float = Field(10.0, ge=0, description="Weight lambda 2 of the kept-norm regularizer.")
    weight_reg_form: Literal["squared_ratio", "norm_ratio", "squared_sum", "norm_sum"] = Field(
        "squared_ratio",
        description="Form of the kept-norm regularizer: sum over layers of the masked weights' squared norms, or of "
        "their norms, alone or as a ratio to that of the weights.",
    )
    weight_reg_decay: bool = Field(
        False, description="Decay lambda 2 linearly to zero, as the public code does and the paper does not."
    )
    target: Literal["global", "block", "layer"] = Field(
        "global", description="Apply the density target to the whole model, to each decoder block or to each layer."
    )
    target_reduction: Literal["sum", "mean"] = Field(
        "sum",
        description="Sum the sparsity regularizers of the blocks or layers, or average them weighted by size.",
    )
    ramp_past_end: bool = Field(
        False, description="Reach the last temperatures and scales one step after the last instead of at the last."
    )
    hard: bool = Field(False, description="Sample one-hot choices in the forward pass (straight-through).")
    finalize: Literal["exact", "threshold"] = Field(
        "exact",
        description="Final dense tiles: `exact`, those with the largest logits, which meets the target to one tile; "
        "`threshold`, those with a positive logit, as in the paper.",
    )

    prox_strength: float = Field(
        0.25, ge=0, description="Weight lambda of ProxSparse's regularizer, the products of three weights of a group."
    )

    # Left out at their defaults, so that the digests of finished jobs stay the same.
    initial_logit: float = Field(
        10.0,
        exclude_if=lambda value: value == 10.0,
        description="MaskPro's initial logit of a weight that the initial mask keeps; the others have zero.",
    )
    tracker_decay: float = Field(
        0.99,
        ge=0,
        lt=1,
        exclude_if=lambda value: value == 0.99,
        description="Decay rate of MaskPro's moving average of the difference between the losses of a sampled mask and "
        "of the initial mask.",
    )

    held_out_sequences: int = Field(
        32,
        ge=0,
        description="Sequences of the learning text, at most a tenth of them, that are not learned on. The loss of the "
        "final form of the mask is measured on them. 0 measures nothing.",
    )
    held_out_measurements: int = Field(
        10,
        ge=1,
        description="Measurements of the held-out loss, evenly spaced over the run. The last is after the last step; "
        "that of the initial mask is not counted.",
    )
    keep: Literal["last", "best"] = Field(
        "last",
        description="Mask of the run: `last`, the one after the last step, or `best`, the measured one with the lowest "
        "held-out loss.",
    )

    gradient_checkpointing: bool = Field(False, description="Recompute blocks in the backward pass.")
    checkpoint_minutes: float = Field(10.0, gt=0, description="Minutes between checkpoints.")
    log_every: int = Field(1, ge=1, description="Steps between two lines of the training curve.")

    @model_validator(mode="after")
    def _micro_batches(self) -> Learning:
        check_micro_batches(self.batch_size, self.micro_batch_size)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {list(self.betas)}; both must be in [0, 1)")
        for name in RAMPS:
            if min(getattr(self, name)) <= 0:
                raise ValueError(f"{name} is {list(getattr(self, name))}; both ends must be positive")
        return self

    @model_validator(mode="after")
    def _combinations(self) -> Learning:
        if self.target == "global" and self.target_reduction != "sum":
            raise ValueError(
                f"target_reduction is {self.target_reduction}, but target is global, which has one regularizer; "
                "leave target_reduction out, or make target block or layer"
            )
        if self.cut_attention and not self.append_eos:
            raise ValueError(
                "append_eos is false, but cut_attention is true, which finds documents by their end-of-sequence "
                "tokens; make append_eos true or cut_attention false"
            )
        if self.keep == "best" and not self.held_out_sequences:
            raise ValueError(
                "keep is best, but held_out_sequences is 0, which measures nothing to choose by; make "
                "held_out_sequences positive or keep last"
            )
        return self

    @property
    def text_sequences(self) -> int:
        """Number of sequences that a run reads at most, with the held-out ones."""
        return self.steps * self.batch_size + self.held_out_sequences

    def held_out_count(self, sequences: int) -> int:
        """Return how many of a text's sequences are held out: at most a tenth, so that little text is lost."""
        return min(self.held_out_sequences, sequences // 10)

    def measured_steps(self) -> set[int]:
        """Return the steps after which the held-out loss is measured; each has a line in the training curve."""
        count, every = self.held_out_measurements, self.log_every
        lasts = (max(0, self.steps * number // count - 1) for number in range(1, count + 1))
        return {min(self.steps - 1, -(-last // every) * every) for last in lasts}

    def dividing_processes(self, processes: int) -> int:
        """Return the largest number of processes that divide the micro-batches evenly and that divides ``processes``.

        The processes beyond can only repeat the micro-batches of these.
        """
        return math.gcd(self.batch_size // self.micro_batch_size, processes)

    def micro_batches(self, rank: int = 0, processes: int = 1) -> range:
        """Return the micro-batches of a step that a process computes, see `divide_batch`."""
        return divide_batch(self.batch_size, self.micro_batch_size, rank, processes)


def check_micro_batches(batch_size: int, micro_batch_size: int) -> None:
    """Check that a batch consists of whole micro-batches.

    Raises:
        ValueError: it does not.
    """
    if batch_size % micro_batch_size:
        raise ValueError(f"micro_batch_size {micro_batch_size} does not divide batch_size {batch_size}; use a divisor")


def divide_batch(batch_size: int, micro_batch_size: int, rank: int = 0, processes: int = 1) -> range:
    """Return the micro-batches of an optimizer step that process ``rank`` of ``processes`` computes.

    They are dealt out in turn, so that all processes together compute the next ones, and sums keep their order.

    Raises:
        InputError: they cannot be divided evenly; the message suggests other numbers.
    """
    count = batch_size // micro_batch_size
    if count % processes:
        if batch_size % processes:
            hint = f"make batch_size a multiple of {processes}"
        else:
            sizes = range(1, micro_batch_size + 1)
            fitting = max(size for size in sizes if batch_size // processes % size == 0)
            hint = f"make micro_batch_size {fitting}"
        fewer = max(number for number in range(1, processes + 1) if count % number == 0)
        raise InputError(
            f"a batch of {batch_size} in micro-batches of {micro_batch_size} makes {count}, which "
            f"{processes} processes (`resources.learn_gpus` times `resources.learn_nodes`) cannot share evenly; "
            f"{hint}, or use {fewer} of them"
        )
    return range(rank, count, processes)


# Where a method's published hyper-parameters differ from the defaults above (PATCH, table of hyper-parameters;
# ProxSparse, its script for LLaMA-2 7B; MaskPro, its README for LLaMA-2 7B).
METHOD_DEFAULTS: dict[str, dict] = {
    "proxsparse": {
        **{"steps": 400, "batch_size": 1, "lr": 1e-4, "warmup_steps": 40, "betas": (0.9, 0.999)},
        # It learns on so few sequences that ten measurements would cost a tenth of a run.
        "held_out_measurements": 5,
    },
    "maskllm": {"weight_reg_decay": True},
    "patch-joint": {},
    "patch-tile": {"lr": 1e-4, "tile_scale": (100.0, 500.0), "sparsity_reg": 3.0, "weight_reg": 0.1},
    "maskpro": {"steps": 10_000, "batch_size": 32, "seqlen": 128, "lr": 50.0},
}

# Where the code of PATCH differs from its paper; docs/deviations.md names the lines of the code.
_CODE = {
    "append_eos": False,
    "warmup_from_zero": True,
    "max_grad_norm": 1.0,
    "pattern_std": 0.014,
    "pattern_noise": "replace",
    "tile_temperature": (4.0, 0.05),
    "ramp_past_end": True,
    "weight_reg_form": "norm_ratio",
    "weight_reg_decay": True,
}
RECIPES: dict[Recipe, dict[str, dict]] = {
    "paper": {},
    "public-code": {
        "maskllm": _CODE | {"weight_decay": 0.1, "weight_reg_form": "norm_sum"},
        "patch-joint": _CODE,
        "patch-tile": _CODE | {"tile_prior": "wanda"},
    },
}


def method_defaults(method: str, recipe: Recipe) -> dict[str, Any]:
    """Return the hyper-parameters of ``method`` that differ from the defaults of `Learning` under ``recipe``."""
    return METHOD_DEFAULTS[method] | RECIPES[recipe].get(method, {})


_PATTERN = tuple(name for name in Learning.model_fields if name.startswith("pattern_"))
_TILE = tuple(name for name in Learning.model_fields if name.startswith("tile_"))
_HYBRID = (*_TILE, "frozen_mask", "sparsity_reg", "target", "target_reduction", "finalize")
_WEIGHT_REG = tuple(name for name in Learning.model_fields if name.startswith("weight_reg"))
_SCHEDULE = ("warmup_from_zero", "ramp_past_end", "max_grad_norm")
_MASKPRO = ("initial_logit", "tracker_decay")
_UNUSED = {
    "proxsparse": (
        *(*_HYBRID, *_PATTERN, *_WEIGHT_REG, "hard", "cut_attention"),
        *(*_SCHEDULE, *_MASKPRO),
    ),
    "maskllm": (*_HYBRID, "prox_strength", *_MASKPRO),
    "patch-joint": ("frozen_mask", "prox_strength", *_MASKPRO),
    "patch-tile": (*_PATTERN, "prox_strength", *_MASKPRO),
    "maskpro": (
        *(*_HYBRID, *(name for name in _PATTERN if name != "pattern_prior"), *_WEIGHT_REG, "hard", "cut_attention"),
        *(*_SCHEDULE, "warmup_steps", "betas", "weight_decay", "prox_strength", "gradient_checkpointing"),
    ),
}


def used_by(method: str, settings: Learning) -> Learning:
    """Return ``settings`` with the defaults of those that ``method`` does not read, so that they trigger no rerun."""
    unused = {name: Learning.model_fields[name].default for name in _UNUSED[method]}
    return settings.model_copy(update=unused)
