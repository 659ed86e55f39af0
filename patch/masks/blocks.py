"""How much of a layer is masked at a time. Light: read while the workflow is parsed."""


def block(device: str, learned: bool) -> int:
    """Weights that are masked, multiplied and differentiated at a time.

    On a CPU they stay, with their gradient and probabilities, in a core's caches, and are few beside a model of which
    only tiles are learned, and no patterns (``learned``); on a GPU they are enough to keep it busy.
    """
    if device == "cuda":
        return 1 << 24
    return 1 << 20 if learned else 1 << 18
