"""Block sizes of masked layers, without PyTorch, since the workflow imports this module while it is parsed."""


def block(device: str, learned: bool) -> int:
    """Return the number of weights that are masked, multiplied and differentiated at a time.

    On a CPU a block, with its gradient and probabilities, fits a core's caches. It is smaller if no patterns are
    ``learned``, only tiles, so that it is small beside the model. On a GPU a block is large enough to keep it busy.
    """
    if device == "cuda":
        return 1 << 24
    return 1 << 20 if learned else 1 << 18
