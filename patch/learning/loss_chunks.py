"""Numbers of tokens whose loss is computed at once, without PyTorch, since the cost model imports this module."""

from __future__ import annotations

# Number of logits at a time, and the smallest number of tokens: each chunk reads the weight of the output layer twice,
# which with a large vocabulary takes longer than the products of a few tokens.
CHUNK = {"cpu": 1 << 20, "cuda": 1 << 27}
FEWEST_TOKENS = 128


def tokens_at_a_time(device: str, vocabulary: int) -> int:
    """Return the number of tokens whose logits, from a frozen output layer, exist at once."""
    return max(FEWEST_TOKENS, CHUNK.get(device, CHUNK["cpu"]) // vocabulary)
