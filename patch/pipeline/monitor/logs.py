"""Paths of job logs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from patch.pipeline.monitor.progress import Log
from patch.pipeline.monitor.queue import Queue
from patch.pipeline.resources.jobs import Node


def rule_log(node: Node, root: str) -> str:
    """Return the path of a job's rule log; ``root`` is the folder of the experiment's results."""
    if node.run is not None:
        name = f"/{node.model}/{node.run.id}"
    elif node.rule in ("collect", "compare", "overview", "summary"):
        name = ""
    elif node.stage in ("speedup", "tabulate"):
        name = f"/{node.name}"
    else:  # The log is named after the job's output in the store.
        name = f"/{Path(node.outputs[0]).name.removesuffix('.npy')}"
    return f"{root}/logs/{node.rule}{name}.log"


def logs_of(queue: Queue, nodes: Iterable[Node], root: str) -> list[str]:
    """Return the paths of existing logs: for each job the rule's log, then SLURM's logs of its newest submission."""
    paths: list[Path] = []
    for node in nodes:
        entry = queue.newest(node.outputs)
        paths.append(Path(rule_log(node, root)))
        if entry is not None and entry.id is not None:
            paths += [entry.log("out"), entry.log("err")]
    return [str(path) for path in paths if path.exists()]


def ended_well(path: str, log: Log) -> bool:
    """Return whether the job that wrote a log succeeded, even if its output was removed later.

    Snakemake writes a job's benchmark file only after success, so a benchmark newer than the log shows success.
    """
    folder, name = path.split("/logs/", 1)
    try:
        return Path(f"{folder}/benchmarks/{name.removesuffix('.log')}.tsv").stat().st_mtime >= log.written
    except OSError:
        return False
