"""AdamW whose moments may be bfloat16, rounded up or down by chance so that none of a small change is lost on average.

Rounding to the nearest, a moment would stall: with a beta of 0.999 a step changes it by a thousandth, and neighbours of
bfloat16 are up to 1/128 apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from patch.config import Learning
from patch.masks.noise import mixed, noise_keys, places

# Elements that are updated at a time, which bounds every temporary tensor.
CHUNK = 1 << 20
# Makes the keys of the rounding others than those of the masks' noise, whatever the counters.
_ROUNDING = 0x726F
# Of bfloat16, the bits that float32 has beyond it.
_LOST = 0xFFFF


def make_optimizer(parameters: Iterable[nn.Parameter], settings: Learning, seed: int) -> torch.optim.Optimizer:
    """The optimizer of a run, whose learning rate is set before every step."""
    if settings.optimizer_state == "bfloat16":
        return AdamW(parameters, settings.lr, settings.betas, settings.weight_decay, torch.bfloat16, seed)
    # Fused, it needs no memory beside its moments.
    return torch.optim.AdamW(parameters, settings.lr, settings.betas, weight_decay=settings.weight_decay, fused=True)


class AdamW(torch.optim.Optimizer):
    """AdamW with decoupled weight decay and bias correction, over contiguous fp32 parameters.

    The random bits of the rounding are a function of seed, step, parameter and element, so that a run that goes on
    from a saved state ends as one that was never stopped, on any number of threads.

    Args:
        parameters: in an order that stays the same.
        lr: learning rate; the group's `lr` may be changed before any step.
        betas: of the moments.
        weight_decay: of the parameters, times the learning rate.
        dtype: of the moments, bfloat16 or float32.
        seed: of the rounding.
        eps: added to the root of the second moment.
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
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps})
        self.seed, self.count = seed, 0
        for parameter in self._parameters():
            self.state[parameter] = {name: torch.zeros_like(parameter, dtype=dtype) for name in ("first", "second")}

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One update of every parameter that has a gradient."""
        self.count += 1
        groups = [group for group in self.param_groups for _ in group["params"]]
        for number, (parameter, group) in enumerate(zip(self._parameters(), groups, strict=True)):
            if parameter.grad is None:
                continue
            keys = noise_keys(self.seed, self.count, number, 0, _ROUNDING)
            parts = parameter.view(-1), parameter.grad.reshape(-1), *map(_flat, self.state[parameter].values())
            pieces = zip(*(part.split(CHUNK) for part in parts), strict=True)
            for place, (value, gradient, first, second) in enumerate(pieces):
                self._update(group, value, gradient, first, second, keys, place * CHUNK)

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
        # The moments as they are before they are rounded.
        value.mul_(1 - rate * group["weight_decay"]).addcdiv_(mean, divisor, value=-rate / (1 - beta**self.count))
        if first.dtype == torch.bfloat16:
            # One number has the bits of both.
            bits = mixed(places(value.numel(), place, value.device), keys)
            first.copy_(stochastically_rounded(mean, bits))
            second.copy_(stochastically_rounded(square, bits >> 16))

    def state_dict(self) -> dict[str, Any]:
        """Steps that were taken, and the moments."""
        moments = {str(number): self.state[parameter] for number, parameter in enumerate(self._parameters())}
        return {"count": self.count, "moments": moments}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; the moments keep their dtype, and no copy of them is made."""
        self.count = state_dict["count"]
        for number, parameter in enumerate(self._parameters()):
            for name, moment in state_dict["moments"][str(number)].items():
                self.state[parameter][name].copy_(moment)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.view(-1)


def stochastically_rounded(value: Tensor, bits: Tensor) -> Tensor:
    """Round fp32 to one of the two neighbours in bfloat16, to each the likelier the nearer it is.

    Args:
        value: numbers; those that are not finite stay as they are.
        bits: int32, of which the lower 16 bits are random.
    """
    # Adding to the bits that are cut off carries into the others with the right chance, whatever the sign.
    raised = (value.view(torch.int32) + (bits & _LOST)).bitwise_and_(~_LOST).view(torch.float32)
    return torch.where(value.isfinite(), raised, value).to(torch.bfloat16)
