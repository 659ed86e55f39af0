"""Snakemake executor plugin: jobs go to SLURM through submitit.

`snakemake --executor submitit --jobs N`. The README beside this package explains settings and resources.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Loaded when they are asked for: a job on a compute node imports this package for `job` alone, which
# needs neither Snakemake nor its interfaces.
_PLACES = {"Executor": "executor", "ExecutorSettings": "settings", "common_settings": "settings"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
