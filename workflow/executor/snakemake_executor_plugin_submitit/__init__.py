"""Snakemake executor plugin that runs jobs on SLURM through submitit.

Use it as `snakemake --executor submitit --jobs N`. The README beside this package documents settings and resources.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Loaded lazily: a job on a compute node needs the module `job` alone, without Snakemake and its interfaces.
_MODULES = {"Executor": "executor", "ExecutorSettings": "settings", "common_settings": "settings"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
