"""Description of the card that is measured."""

from __future__ import annotations

import sys

from benchmarks.gpu.report import Card
from patch.errors import InputError


def describe(device: str) -> Card:
    """Return the description of the GPU, or of the CPU.

    Raises:
        InputError: There is no GPU that torch can use.
    """
    import psutil
    import torch

    from patch.pipeline.results.environment import hardware

    if device == "cpu":
        memory = psutil.virtual_memory().total
        return Card(name=hardware(device), device=device, memory_gb=memory / 1e9, facts={})
    if not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise InputError(
            f"torch {torch.__version__} of {sys.executable}, built for {built}, finds no GPU; give a Python with a "
            "CUDA build of torch: make gpu PYTHON=..., or rehearse on the CPU: make gpu REHEARSE=1"
        )
    properties = torch.cuda.get_device_properties(0)
    facts = {"capability": f"{properties.major}.{properties.minor}", "CUDA": torch.version.cuda or ""}
    facts["multiprocessors"] = str(properties.multi_processor_count)
    return Card(name=properties.name, device=device, memory_gb=properties.total_memory / 1e9, facts=facts)
