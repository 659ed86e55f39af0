"""Access of the commands to the workflow: the options that select a configuration, the plan, and the job graph.

Snakemake reads the configuration and builds the graph, so that a command works with the jobs of `snakemake` itself.
Names of Snakemake that begin with an underscore are used here alone.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from patch.errors import InputError
from patch.files.plain import read_yaml
from patch.pipeline.config.load import DEFAULT_CONFIG
from patch.pipeline.resources.jobs import JobGraph
from patch.pipeline.runs.plan import Plan

if TYPE_CHECKING:
    from snakemake.workflow import Workflow

# Number of cores that limits the threads of no job.
UNLIMITED = 1 << 30


def command_parser(command: str, about: str | None, default: str = DEFAULT_CONFIG) -> argparse.ArgumentParser:
    """Return a parser with the options `--configfile` and `--config`, which mean the same as in Snakemake."""
    parser = argparse.ArgumentParser(prog=f"python -m patch {command}", description=about)
    files = f"configuration files; later files override earlier ones (default: {default})"
    parser.add_argument("--configfile", metavar="FILE", nargs="+", default=[default], help=files)
    keys = "keys that override the configuration files, such as seeds=[0,1,2]"
    parser.add_argument("--config", metavar="KEY=VALUE", nargs="+", default=[], help=keys)
    return parser


def read_plan(options: argparse.Namespace) -> Plan:
    """Return the plan of the configuration that `snakemake --configfile FILES --config CHANGES` runs.

    Raises:
        InputError: A file is missing, a change is not `KEY=VALUE`, or the configuration is invalid.
    """
    with _open_workflow(options) as workflow:
        return workflow.globals["PLAN"]


def read_graph(options: argparse.Namespace) -> JobGraph:
    """Return the jobs of `snakemake --configfile FILES --config CHANGES`.

    Raises:
        InputError: As in `read_plan`, or an input file is missing.
    """
    with _open_workflow(options) as workflow:
        # No lock is taken, so that the command works beside a running Snakemake.
        workflow._prepare_dag(forceall=False, ignore_incomplete=True, lock_warn_only=True, nolock=True)
        workflow._build_dag()
        return JobGraph.read(workflow.globals["PLAN"], workflow.dag)


@contextmanager
def _open_workflow(options: argparse.Namespace) -> Iterator[Workflow]:
    """Parse the Snakefile of the current folder without running anything."""
    # Imported here because Snakemake is slow to import.
    from snakemake.api import SnakemakeApi
    from snakemake.cli import parse_args, parse_config
    from snakemake.exceptions import WorkflowError
    from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, Quietness, ResourceSettings

    snakefile = Path("Snakefile")
    if not snakefile.is_file():
        raise InputError(f"{snakefile.resolve()}: no such file; start the command in the folder of the project")
    for path in options.configfile:
        read_yaml(path)  # refuses templates, which Snakemake's own reader would evaluate
    with redirect_stderr(StringIO()):  # a line on the profile that is used
        _, snakemake = parse_args(["--dry-run", "--configfile", *options.configfile])
    try:
        config = ConfigSettings(config=parse_config(options.config), configfiles=snakemake.configfile)
    except ValueError as error:
        changes = " ".join(options.config)
        raise InputError(f"--config {changes}: {error} For example --config seeds=[0,1,2]") from None
    logging.disable(logging.WARNING)  # messages on the construction of the graph
    try:
        with SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, dryrun=True)) as api:
            workflow = api.workflow(ResourceSettings(cores=UNLIMITED), config, snakefile=snakefile)
            workflow.dag(DAGSettings(rerun_triggers=snakemake.rerun_triggers))
            yield workflow._workflow
    except WorkflowError as error:
        raise InputError(str(error)) from None
    except OSError as error:  # from the inventory of existing files
        raise InputError(f"{error.filename}: {error.strerror}") from None
    finally:
        logging.disable(logging.NOTSET)
