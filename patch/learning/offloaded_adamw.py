"""AdamW of pattern logits whose gradients and moments are in the host's memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from patch.masks.host_memory import HostMemory

MOMENTS = ("exp_avg", "exp_avg_sq")


class OffloadedAdamW(torch.optim.AdamW):
    """Fused AdamW that keeps the moments of pattern logits in host memory.

    A step copies the gradient and the moments of one layer at a time to the device of its logits, and the moments back.
    The results are those of `torch.optim.AdamW` with ``fused=True``, bit for bit, and so are the states: a checkpoint
    of either can be loaded into the other.

    Args:
        masks: `LearnableMask` of each layer of a model, whose sinks hold the gradients of the pattern logits in host
            memory.
        memory: memory of the moments.
        options: options of `torch.optim.AdamW`.
    """

    def __init__(self, masks: nn.ModuleList, memory: HostMemory, **options: Any) -> None:
        super().__init__(masks.parameters(), fused=True, **options)
        self._masks = {mask.pattern_logits: mask for mask in masks if mask.pattern_logits is not None}
        self._memory = memory

    @torch.no_grad()
    def step(self) -> None:
        """Update all logits."""
        # The tile logits: the pattern logits have no gradients on the device.
        super().step()
        (group,) = self.param_groups
        options = {name: group[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize")}
        options |= dict(zip(("beta1", "beta2"), group["betas"], strict=True))
        for logits, mask in self._masks.items():
            state = self._held(logits)
            moments = [torch.empty_like(logits).copy_(state[name], non_blocking=True) for name in MOMENTS]
            first, second = ([moment] for moment in moments)
            adamw([logits], [mask.pattern_gradient()], first, second, [], [state["step"]], fused=True, **options)
            for name, moment in zip(MOMENTS, moments, strict=True):
                state[name].copy_(moment, non_blocking=True)

    def _held(self, logits: Tensor) -> dict[str, Tensor]:
        """Return the state of some logits, which is zero before the first step."""
        state = self.state[logits]
        if not state:
            state["step"] = torch.zeros((), device=logits.device)
            state |= {name: self._memory.empty(logits.shape).zero_() for name in MOMENTS}
        return state

    def state_dict(self) -> dict[str, Any]:
        """Return the state after all copies to the host's memory have ended."""
        if self.param_groups[0]["params"][0].is_cuda:
            torch.cuda.synchronize()
        return super().state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state of this class or of `torch.optim.AdamW`; the moments stay in host memory."""
        numbers = {parameter: number for number, parameter in enumerate(self.param_groups[0]["params"])}
        loaded = dict(state_dict["state"])
        kept = {logits: loaded.pop(numbers[logits], None) for logits in self._masks}
        super().load_state_dict({**state_dict, "state": loaded})
        for logits, saved in kept.items():
            if saved:
                for name, value in self._held(logits).items():
                    value.copy_(saved[name])
