"""Where the logs of jobs are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from patch.pipeline.monitor.progress import Log
from patch.pipeline.monitor.queue import Queue
from patch.pipeline.resources.jobs import Node


def rule_log(node: Node, root: str) -> str:
    """Path of a rule's log; ``root`` is the folder of the experiment's results."""
    if node.cell is not None:
        name = f"/{node.model}/{node.cell.id}"
    elif node.rule in ("collect", "compare", "overview", "summary"):
        name = ""
    elif node.stage in ("speedup", "tabulate"):
        name = f"/{node.name}"
    else:  # named as what it makes in the store
        name = f"/{Path(node.outputs[0]).name.removesuffix('.npy')}"
    return f"{root}/logs/{node.rule}{name}.log"


def logs_of(queue: Queue, nodes: Iterable[Node], root: str) -> list[str]:
    """Paths of the logs that are there: of each job the rule's own, then what SLURM has of its newest submission."""
    paths: list[Path] = []
    for node in nodes:
        entry = queue.newest(node.outputs)
        paths.append(Path(rule_log(node, root)))
        if entry is not None and entry.id is not None:
            paths += [entry.log("out"), entry.log("err")]
    return [str(path) for path in paths if path.exists()]


def ended_well(path: str, log: Log) -> bool:
    """Whether the job that wrote a log succeeded: Snakemake then writes its benchmark; the output is gone since."""
    folder, name = path.split("/logs/", 1)
    try:
        return Path(f"{folder}/benchmarks/{name.removesuffix('.log')}.tsv").stat().st_mtime >= log.written
    except OSError:
        return False
