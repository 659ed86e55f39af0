"""Server of stages for the jobs of several Snakemakes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from patch.pipeline.stages import client


@contextmanager
def stage_server(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Run a server with these variables, and yield them with its address, for Snakemakes.

    They start one themselves only if all models are trained. Otherwise each job would import torch, which takes longer
    than the jobs of these models.
    """
    environment = {**environment, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "patch.pipeline.stages.server"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    # It ends when its standard input does.
    with subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes) as server:
        yield environment | {client.VARIABLE: server.stdout.readline().strip()}
