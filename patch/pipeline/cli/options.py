"""Command-line options that select a configuration, with the names that Snakemake uses."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from patch.errors import InputError
from patch.files.plain import read_yaml
from patch.pipeline.config.experiment import Experiment
from patch.pipeline.config.load import DEFAULT_CONFIG, validate_experiment


def add_config_options(parser: argparse.ArgumentParser, default: str = DEFAULT_CONFIG) -> None:
    """Add the options `--configfile` and `--config`, which have the same meaning as in Snakemake."""
    about = f"configuration files, each on top of those before it ({default})"
    parser.add_argument("--configfile", metavar="FILE", nargs="+", default=[default], help=about)
    parser.add_argument("--config", metavar="KEY=VALUE", nargs="+", default=[], help="keys that replace the files'")


def read_experiment(options: argparse.Namespace) -> Experiment:
    """Return the configuration that `snakemake --configfile FILES --config CHANGES` runs.

    Raises:
        InputError: A file is missing or is not YAML, a change is not `KEY=VALUE`, or the configuration is invalid.
    """
    return validate_experiment(read_config(options.configfile, options.config))


def read_config(paths: Sequence[str], changes: Sequence[str] = ()) -> dict[str, Any]:
    """Return the configuration as a dict, without validation of its values.

    Args:
        paths: Configuration files; the keys of later files replace those of earlier ones.
        changes: Changes of the form `KEY=VALUE`.

    Raises:
        InputError: A file is missing or is not YAML, or a change is not `KEY=VALUE`.
    """
    first, *others = [read_yaml(path) for path in paths]
    if others or changes:
        # Imported here because Snakemake is slow to import and most calls do not need it.
        from snakemake.cli import parse_config
        from snakemake.utils import update_config

        for other in others:
            update_config(first, other)
        try:
            update_config(first, parse_config(list(changes)))
        except ValueError as error:
            raise InputError(f"--config {' '.join(changes)}: {error} For example --config seeds=[0,1,2]") from None
    return first
