"""Reading of results with a check that they match the current configuration; stale results are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from patch.errors import InputError, listed
from patch.pipeline.results.record import Record, read_record
from patch.pipeline.results.samples import Samples, read_samples
from patch.pipeline.results.speed import SpeedRecord, read_speed
from patch.pipeline.runs.layout import digest

T = TypeVar("T")


def read_records(paths: Iterable[Path], digests: Mapping[str, str]) -> list[Record]:
    """Read records and verify that they match the settings of the configuration.

    Args:
        paths: paths of the files.
        digests: `model/run` -> digest of the evaluation settings of the run.

    Raises:
        InputError: `read_record` raises it, a record has other settings, or its run is not in ``digests``.
    """
    found = {path: read_record(path) for path in paths}
    return _verified(found, digests, lambda record: (f"{record.run.model}/{record.run.id}", record.config_digest))


def read_all_samples(paths: Iterable[Path], digests: Mapping[str, str]) -> list[Samples]:
    """Read the samples of runs and verify their settings in the same way as `read_records`."""
    found = {path: read_samples(path) for path in paths}
    return _verified(found, digests, lambda samples: (f"{samples.run.model}/{samples.run.id}", samples.config_digest))


def read_speeds(paths: Iterable[Path], digests: Mapping[str, str]) -> list[SpeedRecord]:
    """Read speed records and verify their settings like `read_records`; keys of ``digests`` are `speedup/model`."""
    found = {path: read_speed(path) for path in paths}
    return _verified(found, digests, lambda speed: (f"speedup/{speed.model}", speed.config_digest))


def _verified(found: Mapping[Path, T], digests: Mapping[str, str], identity: Callable[[T], tuple[str, str]]) -> list[T]:
    identities = {path: identity(result) for path, result in found.items()}
    for path, (name, _) in identities.items():
        if name not in digests:
            raise InputError(f"{path}: results of `{name}`, which is not among the {len(digests)} to be read")
    refuse_stale([str(path) for path, (name, digest) in identities.items() if digests[name] != digest], len(found))
    return list(found.values())


def refuse_stale(stale: Sequence[str], count: int) -> None:
    """Raise an error that names the stale results among ``count``, if there are any.

    Raises:
        InputError: ``stale`` is not empty.
    """
    if stale:
        raise InputError(
            f"{len(stale)} of {count} results were measured with other settings than this configuration's, and are not "
            f"used: {listed(stale)}; run `snakemake` again, or remove them"
        )


def joint_digest(digests: Iterable[str]) -> str:
    """Return one digest of several evaluation digests, independent of their order."""
    return digest(sorted(digests))
