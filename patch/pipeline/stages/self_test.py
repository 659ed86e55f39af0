"""Self-test of the kernels on the machine that computes, before the jobs of an experiment."""

from __future__ import annotations

import time
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from patch.errors import InputError
from patch.files.io import write_json
from patch.inference.backends.check import check_packed_products
from patch.masks.kernels.check import check_mask_kernels
from patch.pipeline.results.environment import hardware
from patch.pipeline.runs.stage_settings import SelfTestSettings
from patch.pipeline.stages._common import prepare_device


def run_self_test(settings: SelfTestSettings, *, report: Path) -> None:
    """Compare all kernels with plain PyTorch, and write what was compared.

    Raises:
        InputError: A kernel is wrong or fails.
    """
    found = self_test(settings.device)
    write_json(report, found)
    print(summary(found))


def self_test(device: str) -> dict[str, Any]:
    """Compare the mask kernels and the packed products on a device with plain PyTorch in float64.

    Returns:
        The hardware, the versions of torch and Triton, the number of cases, the largest error of each kernel as a
        fraction of the largest value, and the seconds.

    Raises:
        InputError: A kernel is wrong or fails; the message names the kernel, the case and the error.
    """
    prepare_device(device)
    started, errors, cases, name = time.monotonic(), {}, 0, hardware(device)
    try:
        for check in chain(check_mask_kernels(torch.device(device)), check_packed_products(torch.device(device))):
            cases += 1
            errors[check.kernel] = max(errors.get(check.kernel, 0.0), check.error)
            if check.failed:
                raise InputError(
                    f"{check.kernel} is wrong: {check.case}: the error is {check.error:.3g} of the largest value, and "
                    f"rounding explains {check.tolerance:g}"
                )
    except InputError as error:
        raise InputError(f"self-test on {name}: {error}") from error
    return {
        "device": device,
        "hardware": name,
        "versions": {package: _version(package) for package in ("torch", "triton")},
        "cases": cases,
        "largest_errors": errors,
        "seconds": round(time.monotonic() - started, 3),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def summary(found: dict[str, Any]) -> str:
    """Return the result of a self-test as text, with a line for each kernel."""
    lines = [f"self-test: {found['cases']} comparisons on {found['hardware']} agree, in {found['seconds']:.1f} s"]
    return "\n".join([*lines, *(f"  {kernel}: {error:.1e}" for kernel, error in found["largest_errors"].items())])
