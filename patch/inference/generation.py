"""Greedy generation for speed tests: a fixed number of tokens, without sampling or an end token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from patch.errors import InputError
from patch.inference.freezing import freeze
from patch.inference.timing import DeviceTimer, Quartiles, quartiles

if TYPE_CHECKING:
    from transformers import StaticCache


class Seconds(NamedTuple):
    """Wall time of one generation: the prompt up to the first new token, and all other new tokens."""

    prefill: float
    decode: float

    @property
    def total(self) -> float:
        """Seconds from the prompt to the last token."""
        return self.prefill + self.decode


def speed_quantities(tokens: int, seconds: Sequence[Seconds], dense: Sequence[Seconds]) -> dict[str, Quartiles]:
    """Return the quartiles of the speed and of the times of one model that generates ``tokens`` in each repeat.

    `speedup` compares each repeat with that of the dense model in the same turn.
    """
    values = {
        "tokens_per_second": [tokens / run.total for run in seconds],
        "prefill_seconds": [run.prefill for run in seconds],
        "decode_seconds": [run.decode for run in seconds],
        "speedup": [other.total / run.total for run, other in zip(seconds, dense, strict=True)],
    }
    return {name: quartiles(numbers) for name, numbers in values.items()}


class Generation:
    """Greedy generation from one batch of prompts, repeated at every call.

    Keys and values are in a static cache, whose tensors keep their addresses. A decoding step is therefore the same
    work at every length, and on `cuda` it can be captured in a CUDA graph.

    Args:
        model: a causal language model of transformers, which is frozen.
        tokens: `[batch, prompt]` int64, on the model's device.
        new_tokens: number of tokens added to each sequence, 2 or more.
        name: name of the model in messages.
        graph: on `cuda`, capture a decoding step if possible.
        cache: cache of another generation of the same shapes that is not in use at the same time; None for a new one.

    Raises:
        InputError: the model has too few positions.
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: Tensor,
        new_tokens: int,
        name: str = "decoding",
        graph: bool = True,
        cache: StaticCache | None = None,
    ) -> None:
        from transformers import StaticCache

        check_positions(model, tokens.shape[1], new_tokens)
        length = tokens.shape[1] + new_tokens
        self.model, self.tokens, self.new_tokens, self.name = freeze(model), tokens, new_tokens, name
        self.length, self.device = length, tokens.device
        self.cache = StaticCache(config=model.config, max_cache_len=length) if cache is None else cache
        # Inputs and outputs of a captured step: the last token of each sequence, and the position of the next one.
        self._token = torch.zeros_like(tokens[:, :1])
        self._position = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        self._decode: Callable[[], None] = self._step
        self._capture_pending = graph and self.device.type == "cuda"
        self.new: Tensor | None = None

    @property
    def in_graph(self) -> bool:
        """Return whether a decoding step replays a CUDA graph, after the first call."""
        return self._decode != self._step

    @torch.inference_mode()
    def __call__(self) -> Seconds:
        """Generate, store the tokens, `[batch, new_tokens]`, in `new`, and return the times."""
        if self._capture_pending:
            self._capture_pending = False
            self._capture()
        return self._generate(self._decode)

    @torch.inference_mode()
    def first_logits(self) -> Tensor:
        """Return the logits after the prompt, and after its first token again: `[2, batch, vocabulary]`, fp32.

        They cover inputs of many rows and of few, which different kernels may multiply.
        """
        self.cache.reset()
        return torch.stack([self._forward(tokens).float() for tokens in (self.tokens, self.tokens[:, :1])])

    def _forward(self, tokens: Tensor, **inputs: object) -> Tensor:
        output = self.model(input_ids=tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1, **inputs)
        return output.logits[:, -1]

    def _generate(self, step: Callable[[], None]) -> Seconds:
        self.cache.reset()
        new = [torch.empty_like(self._token) for _ in range(self.new_tokens)]
        timer = DeviceTimer(self.device)
        timer.stamp()
        self._token.copy_(self._forward(self.tokens).argmax(-1, keepdim=True))
        self._position.fill_(self.tokens.shape[1])
        new[0].copy_(self._token)
        timer.stamp()
        for token in new[1:]:
            step()
            token.copy_(self._token)
        timer.stamp()
        self.new = torch.cat(new, 1)
        return Seconds(*timer.seconds())

    def _step(self) -> None:
        """Generate one token; the model itself derives positions and masks from the cache."""
        self._token.copy_(self._forward(self._token).argmax(-1, keepdim=True))

    def _step_by_position(self) -> None:
        """Generate one token at the position in a tensor, since a captured graph cannot read Python's numbers."""
        seen = (torch.arange(self.length, device=self.device) <= self._position)[None, None]
        mask = seen.expand(len(self.tokens), 1, 1, self.length)
        kinds = set(getattr(self.model.config.get_text_config(), "layer_types", None) or [])
        # Models with several kinds of layers need a mask for each.
        masks = dict.fromkeys(kinds, mask) if "sliding_attention" in kinds else mask
        logits = self._forward(self._token, position_ids=self._position, attention_mask=masks)
        self._token.copy_(logits.argmax(-1, keepdim=True))
        self._position.add_(1)

    def _capture(self) -> None:
        """Decode by a CUDA graph from now on if that gives the same tokens; else print the reason why it does not."""
        self._generate(self._step)
        expected = self.new
        try:
            if any(layer.max_cache_len < self.length for layer in self.cache.layers):
                raise ValueError("a sliding window moves over the cache")
            # From the first position, so that the steps before capturing do not run past the end.
            self.cache.reset()
            self._position.zero_()
            replay = captured(self._step_by_position)
            self._generate(replay)
            if not torch.equal(self.new, expected):
                raise ValueError("it gives other tokens")
        except (RuntimeError, ValueError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"{self.name}: decoding is not captured in a CUDA graph ({reason})", flush=True)
            torch.cuda.synchronize()
        else:
            self._decode = replay


def captured(function: Callable[[], object]) -> Callable[[], None]:
    """Capture a function that uses the same tensors at every call as a CUDA graph, and return the graph's replay."""
    # Capturing requires warm-up calls on another stream, so that lazy initialization is over before.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def check_positions(model: nn.Module, prompt: int, new_tokens: int) -> None:
    """Refuse more tokens than a model has positions.

    Raises:
        InputError: the model has too few positions.
    """
    length, positions = prompt + new_tokens, getattr(model.config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise InputError(
            f"a prompt of {prompt} tokens and {new_tokens} new ones need {length} positions; the model "
            f"has {positions}: lower `speedup.prompt` or `speedup.new_tokens`"
        )


def random_prompt(model: nn.Module, batch_size: int, prompt: int, seed: int = 0) -> Tensor:
    """Return random tokens, `[batch_size, prompt]` on the model's device; the speed does not depend on their values."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.get_input_embeddings().num_embeddings
    return torch.randint(vocabulary, (batch_size, prompt), generator=generator).to(next(model.parameters()).device)
