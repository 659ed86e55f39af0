"""AdamW whose moments may be bfloat16, with stochastic rounding so that small changes are not lost on average.

Rounded to the nearest, a moment would stall: with a beta of 0.999 a step changes it by a thousandth, and neighbouring
bfloat16 numbers are up to 1/128 apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from patch.learning.parts import Columns
from patch.learning.settings import Learning
from patch.masks.noise import mixed, noise_keys, places

# Number of elements that are updated at a time, which bounds every temporary tensor.
CHUNK = 1 << 20
# Counter that makes the keys of the rounding differ from those of the masks' noise, whatever the other counters.
_ROUNDING = 0x726F
# The bits that float32 has beyond bfloat16.
_LOST = 0xFFFF


def make_optimizer(
    parameters: Iterable[nn.Parameter], settings: Learning, seed: int, columns: Mapping[Hashable, Columns] | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer of a run, whose learning rate is set before every step; ``columns`` as for `AdamW`."""
    if settings.optimizer_state == "bfloat16":
        decay = settings.weight_decay
        return AdamW(parameters, settings.lr, settings.betas, decay, torch.bfloat16, seed, columns=columns)
    # The fused implementation needs no memory beside its moments.
    return torch.optim.AdamW(parameters, settings.lr, settings.betas, weight_decay=settings.weight_decay, fused=True)


class AdamW(torch.optim.Optimizer):
    """AdamW with decoupled weight decay and bias correction, over contiguous fp32 parameters.

    The random bits of the rounding are a function of seed, step, parameter and element. A run that resumes from a saved
    state therefore ends as one that was never stopped, on any number of threads and processes.

    Args:
        parameters: parameters, in an order that stays the same.
        lr: learning rate; the group's `lr` may be changed before any step.
        betas: decay rates of the moments.
        weight_decay: factor of the parameters, times the learning rate.
        dtype: dtype of the moments, bfloat16 or float32.
        seed: seed of the rounding.
        eps: number added to the root of the second moment.
        columns: for the numbers of parameters that are column shards, `[rows, columns]`, the columns that each holds.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.bfloat16,
        seed: int = 0,
        eps: float = 1e-8,
        columns: Mapping[Hashable, Columns] | None = None,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps})
        self.seed, self.count, self.columns = seed, 0, columns or {}
        for parameter in self._parameters():
            self.state[parameter] = {name: torch.zeros_like(parameter, dtype=dtype) for name in ("first", "second")}

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Update every parameter that has a gradient."""
        self.count += 1
        groups = [group for group in self.param_groups for _ in group["params"]]
        for number, (parameter, group) in enumerate(zip(self._parameters(), groups, strict=True)):
            if parameter.grad is None:
                continue
            keys = noise_keys(self.seed, self.count, number, 0, _ROUNDING)
            parts = parameter.view(-1), parameter.grad.reshape(-1), *map(_flat, self.state[parameter].values())
            for piece, place in self._pieces(number, parameter.shape):
                self._update(group, *(part[piece] for part in parts), keys, place)

    def _pieces(self, number: int, shape: torch.Size) -> Iterator[tuple[slice, int]]:
        """Yield slices of a parameter's elements, and the place of the first of each in the whole parameter."""
        columns, width, stretches = self.columns.get(number), shape.numel(), [0]
        if columns is not None and columns.count < columns.whole:
            width, stretches = columns.count, [row * columns.whole + columns.first for row in range(shape[0])]
        for row, start in enumerate(stretches):
            for first in range(0, width, CHUNK):
                yield slice(row * width + first, row * width + min(width, first + CHUNK)), start + first

    def _update(
        self,
        group: dict[str, Any],
        value: Tensor,
        gradient: Tensor,
        first: Tensor,
        second: Tensor,
        keys: tuple[int, int],
        place: int,
    ) -> None:
        (beta, beta_square), rate = group["betas"], group["lr"]
        mean = first.float().lerp_(gradient, 1 - beta)
        square = second.float().mul_(beta_square).addcmul_(gradient, gradient, value=1 - beta_square)
        divisor = square.sqrt().div_(math.sqrt(1 - beta_square**self.count)).add_(group["eps"])
        # The update uses the moments before rounding.
        value.mul_(1 - rate * group["weight_decay"]).addcdiv_(mean, divisor, value=-rate / (1 - beta**self.count))
        if first.dtype == torch.bfloat16:
            # The two moments use the lower and the upper bits of one random number.
            bits = mixed(places(value.numel(), place, value.device), keys)
            first.copy_(stochastically_rounded(mean, bits))
            second.copy_(stochastically_rounded(square, bits >> 16))

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps done, and the moments."""
        moments = {str(number): self.state[parameter] for number, parameter in enumerate(self._parameters())}
        return {"count": self.count, "moments": moments}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; the moments keep their dtype and are copied in place."""
        self.count = state_dict["count"]
        for number, parameter in enumerate(self._parameters()):
            for name, moment in state_dict["moments"][str(number)].items():
                self.state[parameter][name].copy_(moment)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.view(-1)


def stochastically_rounded(value: Tensor, bits: Tensor) -> Tensor:
    """Round fp32 to one of its two neighbours in bfloat16; the nearer a neighbour is, the likelier it is chosen.

    Args:
        value: fp32 numbers; those that are not finite are not changed.
        bits: int32, of which the lower 16 bits are random.
    """
    # Adding to the bits that are cut off carries into the others with the right probability, whatever the sign.
    raised = (value.view(torch.int32) + (bits & _LOST)).bitwise_and_(~_LOST).view(torch.float32)
    return torch.where(value.isfinite(), raised, value).to(torch.bfloat16)
