"""Software and hardware environment of a measurement."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("patch-sparsity", "torch", "transformers", "datasets", "lm-eval", "numpy", "safetensors", "tokenizers")


def git_commit() -> str:
    """Return the commit of the checkout, with `-dirty` if tracked files differ; `unknown` outside a checkout."""
    root = Path(__file__).parent
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor_name() -> str:
    """Return the name of the CPU, or its architecture if the system does not report a name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def hardware(device: str) -> str:
    """Return the name of the GPU or the CPU."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else processor_name()


def describe_environment(device: str) -> dict[str, Any]:
    """Return the commit, versions, hardware, threads and time for a record."""
    import torch

    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "packages": packages,
        "device": hardware(device),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
