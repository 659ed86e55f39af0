"""Schemas of `prune_args` and `mask_args`: keys, defaults, and supported values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, PositiveFloat, model_validator

from patch.errors import InputError
from patch.settings import Section, validate

T = TypeVar("T", bound=BaseModel)

EvalDataset = Literal["wikitext2", "ptb"]


def tile_side(value: Any) -> Any:
    """Return the side of a tile from a number or a square pair.

    Raises:
        ValueError: the pair is not square, or the side is not a positive multiple of 4.
    """
    if isinstance(value, list | tuple) and len(value) == 2:
        if value[0] != value[1]:
            raise ValueError(f"{tuple(value)} is not square, and only square tiles can be learned; use one number")
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int) or value < 4 or value % 4:
        raise ValueError(f"{value!r} is no side of a tile; use a multiple of 4, such as 128")
    return value


Schedule = tuple[PositiveFloat, PositiveFloat]
Optimizer = Literal["adamw_torch"]


class PruneArguments(Section):
    """Arguments of one-shot pruning."""

    prune_method: Literal["magnitude", "wanda", "sparsegpt", "thanos", "prox_sparse", "maskllm"]
    sparsity_type: Literal["2:4", "unstructured"]
    sparsity_ratio: float = Field(ge=0, lt=1)
    nsamples: int = Field(128, ge=1)
    maskllm_checkpoint: str | Path | None = None
    optimizer_FT_pruning: Optimizer | None = "adamw_torch"
    calibration_dataset: Literal["c4", "wikitext2", "slimpajama"] = "c4"
    eval_dataset: EvalDataset = "wikitext2"
    shift_zero_metrics: bool = False
    fine_tune: bool = False

    @model_validator(mode="after")
    def _can_be_honoured(self) -> PruneArguments:
        if self.shift_zero_metrics and self.prune_method != "wanda":
            raise ValueError(
                f"shift_zero_metrics is True, but prune_method {self.prune_method!r} has no norms to shift, which "
                "'wanda' alone has; use False"
            )
        if self.sparsity_type == "2:4" and self.sparsity_ratio != 0.5:
            raise ValueError(
                f"sparsity_ratio is {self.sparsity_ratio:g} with sparsity_type '2:4', which is 0.5; "
                "use 0.5, or sparsity_type 'unstructured'"
            )
        if self.prune_method in ("prox_sparse", "maskllm") and self.sparsity_type != "2:4":
            raise ValueError(
                f"sparsity_type is {self.sparsity_type!r}, but prune_method {self.prune_method!r} makes '2:4' alone"
            )
        if self.prune_method == "maskllm" and not self.maskllm_checkpoint:
            raise ValueError(
                "maskllm_checkpoint is missing; prune_method 'maskllm' needs published masks: a repository of the hub, "
                "such as 'Vinnnf/LLaMA-2-7B-MaskLLM-C4', or the path of its `mask_compressed.npz`"
            )
        return self

    @property
    def method(self) -> str:
        """Name of the method in this library."""
        return "proxsparse" if self.prune_method == "prox_sparse" else self.prune_method


class MaskArguments(Section):
    """Arguments of mask learning."""

    learnable_mask: bool = True
    mask_tile_size: Annotated[
        int | None, BeforeValidator(lambda value: None if value is None else tile_side(value))
    ] = None
    grad_checkpoint: bool = False
    local_bs: int = Field(1, ge=1)
    optimizer: Optimizer = "adamw_torch"
    fine_tuning_sequence_length: int = Field(4096, ge=4)
    target_sparsity_ratio: float | None = None
    lr: float = Field(1e-3, gt=0)
    sparse_reg: float = Field(7.0, ge=0)
    weight_reg: float = Field(10.0, ge=0)
    temp_schedule_2_4: Schedule = (4.0, 0.05)
    scaler_schedule_2_4: Schedule = (100.0, 500.0)
    hard_2_4: bool = False
    prior_strength_2_4: float = Field(3.0, ge=0)
    joint_optim: bool = False
    temp_schedule_tile: Schedule = (4.0, 0.05)
    scaler_schedule_tile: Schedule = (25.0, 350.0)
    hard_tile: bool = False
    prior_strength_tile: float = Field(3.0, ge=0)
    mask_llm: bool = False
    layer_target: bool = False

    @model_validator(mode="after")
    def _can_be_honoured(self) -> MaskArguments:
        if self.learnable_mask and self.method == "patch-joint" and self.hard_2_4 != self.hard_tile:
            raise ValueError(
                f"hard_2_4 is {self.hard_2_4} and hard_tile is {self.hard_tile}, but patterns and tiles that are "
                "learned together are sampled in one way; use the same for both"
            )
        return self

    @property
    def method(self) -> str:
        """Name in this library of the method that learns the masks."""
        if self.mask_llm:
            return "maskllm"
        return "patch-joint" if self.joint_optim else "patch-tile"

    @property
    def hard(self) -> bool:
        """Hard-sampling flag of the learned part; both flags are equal if patterns and tiles are learned."""
        return self.hard_tile if self.method == "patch-tile" else self.hard_2_4


def read_arguments(model: type[T], arguments: Any, where: str) -> T:
    """Validate arguments that are a mapping or an object with attributes.

    Args:
        model: `PruneArguments` or `MaskArguments`.
        arguments: a dict, a namespace, a dataclass, or any object whose public attributes are the keys.
        where: name of the arguments in messages.

    Raises:
        InputError: a key is unknown or missing, or its value is not supported.
    """
    return checked(model, _as_dict(arguments, where), where)


def checked(model: type[T], values: dict[str, Any], where: str, source: str = "") -> T:
    """Validate as `patch.settings.validate` does; messages name ``source`` or else ``where``."""
    try:
        return validate(model, values, where)
    except InputError as error:
        raise InputError(f"{source or where}: " + str(error).removeprefix("configuration: ")) from None


def _as_dict(arguments: Any, where: str) -> dict[str, Any]:
    if isinstance(arguments, Mapping):
        return dict(arguments)
    plain = str | bytes | int | float | list | tuple | set | None
    if isinstance(arguments, plain) or callable(arguments):
        raise InputError(f"{where} is {arguments!r}; give a dict, or an object with the keys as attributes")
    names = (name for name in dir(arguments) if not name.startswith("_"))
    return {name: value for name in names if not callable(value := getattr(arguments, name))}
