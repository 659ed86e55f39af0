"""Results that the settings of the configuration have measured: any others are named and not used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from patch.errors import InputError
from patch.pipeline.results.record import Record, read_record
from patch.pipeline.results.samples import Samples, read_samples
from patch.pipeline.results.speed import SpeedRecord, read_speed
from patch.pipeline.runs.layout import digest

T = TypeVar("T")
NAMED = 5


def read_records(paths: Iterable[Path], digests: Mapping[str, str]) -> list[Record]:
    """Read records and verify that their settings are the configuration's.

    Args:
        paths: of the files.
        digests: `model/cell` -> digest of the settings of the cell's evaluation.

    Raises:
        InputError: as `read_record`; or a record has other settings, or is of a run that is not in ``digests``.
    """
    found = {path: read_record(path) for path in paths}
    return _verified(found, digests, lambda record: (f"{record.cell.model}/{record.cell.id}", record.config_digest))


def read_all_samples(paths: Iterable[Path], digests: Mapping[str, str]) -> list[Samples]:
    """Read the samples of runs and verify that their settings are the configuration's; as `read_records`."""
    found = {path: read_samples(path) for path in paths}
    return _verified(found, digests, lambda samples: (f"{samples.cell.model}/{samples.cell.id}", samples.config_digest))


def read_speeds(paths: Iterable[Path], digests: Mapping[str, str]) -> list[SpeedRecord]:
    """Read measurements of speed, `speedup/model` in ``digests``, and verify their settings; as `read_records`."""
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
    """Raise an error that names stale results, if there are any of ``count``.

    Raises:
        InputError: there are.
    """
    if stale:
        more = f" and {len(stale) - NAMED} more" if len(stale) > NAMED else ""
        raise InputError(
            f"{len(stale)} of {count} results were measured with other settings than this configuration's, and are not "
            f"used: {', '.join(stale[:NAMED])}{more}; run `snakemake` again, or remove them"
        )


def joint_digest(digests: Iterable[str]) -> str:
    """Digest of what several evaluations were told, in any order."""
    return digest(sorted(digests))
