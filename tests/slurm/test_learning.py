"""The project's own learning jobs on the cluster, by `snakemake --profile slurm`."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from patch.data.tokenizer import train_tokenizer

from .harness import Project, Run
from .scenes import scene

ROOT = Path(__file__).parents[2]
RUN = "patch-joint_hybrid_0.45_t16_s0"
SECONDS = 600
# Within a limit of one minute, 10 to 45 seconds of steps run.
STEPS = 100
LIMITS = 2
# Runs a stage whose learning steps take a second more, without a processor.
SLOW = """
import sys, time
from patch.learning import loop
from patch.pipeline.stages.__main__ import main

class Slow(loop.Progress):
    def show(self, *values):
        time.sleep(1)
        super().show(*values)

loop.Progress = Slow
sys.exit(main(sys.argv[1:]))
"""


def _lay_out(folder: Path, steps: int) -> None:
    """Make a clone with a small model, a text, and a configuration whose mask learning starts from random masks."""
    folder.mkdir()
    for name in ("Snakefile", "workflow", "config", "profiles", "slurm", "environment.yml"):
        (folder / name).symlink_to(ROOT / name)
    rng = random.Random(0)
    words = [
        "".join(rng.choice("bdfgklmn") + rng.choice("aeiou") for _ in range(rng.randint(1, 3))) for _ in range(200)
    ]
    paragraphs = [" ".join(rng.choices(words, k=60)) for _ in range(600)]
    (folder / "text.txt").write_text("\n\n".join(paragraphs))
    tokenizer = train_tokenizer(paragraphs, 320)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=1, **sizes))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    use = {"corpus": "made", "split": "train"}
    learning = {"use": use, "steps": steps, "batch_size": 2, "micro_batch_size": 1, "seqlen": 32}
    split = {"train": 0.7, "calibration": 0.1, "validation": 0.1, "test": 0.1}
    settings = {
        "experiment": "one",
        "corpora": {"made": {"source": {"kind": "files", "files": ["text.txt"], "split": split}}},
        "models": {"local": {"title": "Local", "variant": "joint", "source": {"kind": "local", "path": "model"}}},
        "calibration": {"use": use, "samples": 4, "seqlen": 32},
        "learning": {"common": learning | {"pattern_prior": "none", "tile_prior": "random"}},
        "evaluation": {
            "perplexity": {"use": use, "seqlen": 32},
            "tasks": ["cloze"],
            "include_path": "workflow/tasks",
            "task_use": use,
        },
        "grid": [{"methods": ["patch"], "sparsity": [0.45]}],
        "tile": 16,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))


def _learn(project: Project, experiment: str, *options: str, changes: str = "") -> None:
    """Learn the mask of one experiment on the cluster."""
    folder = project.folder / "clone"
    command = [sys.executable, "-m", "snakemake", f"results/{experiment}/masks/local/{RUN}.safetensors"]
    command += ["--profile", "slurm", "--submitit-squeue-seconds", "3"]
    command += ["--configfile", "tiny.yaml", *options, "--config", f"experiment={experiment}", *filter(None, [changes])]
    environment = os.environ | project.cluster.env | {"PYTHONPATH": str(ROOT)}
    environment["PATH"] = os.pathsep.join([str(project.bin), str(Path(sys.executable).parent), environment["PATH"]])
    run = Run(command, folder, environment, project.folder / f"{experiment}.txt")
    project.runs.append(run)
    run.wait(SECONDS)
    assert run.code == 0, run.output


def _mask(project: Project, experiment: str) -> dict[str, torch.Tensor]:
    return load_file(project.folder / f"clone/results/{experiment}/masks/local/{RUN}.safetensors")


def _losses(project: Project, experiment: str) -> list[float]:
    curve = project.folder / f"clone/results/{experiment}/curves/local/{RUN}.jsonl"
    return [json.loads(line)["loss"] for line in curve.read_text().splitlines()]


@scene(seconds=150, snakefile="")
def processes(project: Project) -> None:
    _lay_out(project.folder / "clone", steps=6)
    _learn(project, "one")
    _learn(project, "two", changes="resources={learn_gpus: 2}")
    _learn(project, "nodes", changes="resources={learn_nodes: 2}")


@pytest.mark.parametrize("experiment", ["two", "nodes"])
def test_two_processes_learn_what_one_does(processes: Project, experiment: str) -> None:
    expected, found = _mask(processes, "one"), _mask(processes, experiment)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert _losses(processes, experiment) == _losses(processes, "one")


def test_processes_run_where_they_were_asked_for(processes: Project) -> None:
    # The third learning job ran on both nodes.
    text = processes.cluster.run("squeue", "--states=all", "--noheader", "--format=%j %D").stdout
    assert sorted(line.split()[1] for line in text.splitlines() if line.startswith("learn")) == ["1", "1", "2"]


@scene(seconds=330, snakefile="")
def longer_than_the_limit(project: Project) -> None:
    _lay_out(project.folder / "clone", steps=STEPS)
    (project.folder / "slow.py").write_text(SLOW)
    slow, learn = f'{sys.executable} {project.folder}/slow.py "${{@:3}}"', "-m patch.pipeline.stages learn "
    project.shim("python", f'[[ "$* " == "{learn}"* ]] && exec {slow}; exec {sys.executable} "$@"')
    # More minutes than the partition's limit of one.
    options = ["--default-resources", "slurm_partition=short", "--set-resources", "learn:runtime=6"]
    _learn(project, "cut", *options, "tokenize:slurm_partition=low")


def test_learning_that_is_longer_than_its_partition_allows_just_works(longer_than_the_limit: Project) -> None:
    events = [
        json.loads(line)["event"]
        for path in longer_than_the_limit.folder.glob("clone/work/submit/*/*_events.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert events.count("time limit") >= LIMITS
    assert events.count("start") == events.count("time limit") + events.count("end")
    assert longer_than_the_limit.cluster.calls("sbatch") == 2  # tokenization and learning
    assert len(_losses(longer_than_the_limit, "cut")) == STEPS, "each step was logged once"
