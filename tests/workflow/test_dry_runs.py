"""Dry runs of the shipped configurations: jobs by rule, their resources, and imported modules."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from patch.pipeline.config.load import load_experiment
from patch.pipeline.runs.grid import Grid

from ..forked import run_snakemake

ROOT = Path(__file__).parents[2]
SECONDS = 60  # a dry run takes one to two on an idle machine
# Slow imports that planning does not need.
HEAVY = {"torch", "transformers", "datasets", "lm_eval", "matplotlib", "pandas", "accelerate", "peft"}


class Job(NamedTuple):
    """A job in the output of a dry run."""

    rule: str
    fields: dict[str, str]

    def files(self, field: str) -> list[str]:
        return [path for path in self.fields.get(field, "").split(", ") if path]

    def resource(self, name: str) -> int:
        resources = dict(item.split("=", 1) for item in self.fields["resources"].split(", "))
        return int(resources.get(name, 0))


def link(folder: Path) -> None:
    """Link the repository's files into a folder, without its outputs."""
    for name in ("Snakefile", "workflow", "config", "profiles"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)


def snakemake(folder: Path, *options: str, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in a folder with the repository's files and without its outputs; ``python`` are its options."""
    link(folder)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if not python:
        return run_snakemake(folder, options, environment)
    command = [sys.executable, *python, "-m", "snakemake", *options]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)


def dry_run(folder: Path, *options: str) -> list[Job]:
    run = snakemake(folder, "-n", *options)
    output = run.stdout + run.stderr
    assert run.returncode == 0, output
    blocks = re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", output, flags=re.MULTILINE)
    return [Job(rule, dict(re.findall(r"^    (\w+): (.*)$", text, flags=re.MULTILINE))) for rule, text in blocks]


def counts(jobs: list[Job]) -> dict[str, int]:
    return dict(Counter(job.rule for job in jobs))


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> list[Job]:
    return dry_run(tmp_path_factory.mktemp("paper"), "--configfile", "config/paper.yaml")


def test_paper_has_each_job_once_and_no_other(paper):
    models, ratios, large, small = 6, 3, 2, 3
    compared = 5  # all but Llama-2-13B: unstructured pruning, MaskLLM's mask, and speed
    magnitude, thanos, proxsparse, maskllm, dense = 1, 1, 1, 1, 1
    wanda, sparsegpt, patch = 1, 1, ratios
    one_shot = magnitude + wanda + sparsegpt + thanos
    # SparseGPT at each ratio, from which the tiles start, is in the grid of the other models.
    unstructured = compared * 2 * ratios
    quantized = large * (maskllm + 2 * patch)  # without and with adapters, of the two models of the paper's table
    assert counts(paper) == {
        "fetch_corpus": 3,  # SlimPajama, C4, WikiText-2
        "fetch_mask": large,  # MaskLLM's mask, over which patch-tile learns
        "fetch_model": models,
        "fetch_tasks": 1,
        "import_mask": large,
        "self_test": 1,
        "calibrate": models,  # one seed; shared by all one-shot methods and by SLiM-LoRA
        "tokenize": models * 3,  # the text for mask learning, for ProxSparse, and for perplexity
        "prune": models * one_shot + unstructured + ratios,  # 6 x 4 + 30 + 3 = 57
        "update_weights": models * (sparsegpt + thanos) + compared * ratios,  # 6 x 2 + 15 = 27
        "learn": models * (proxsparse + patch) + small * maskllm,  # 6 x 4 + 3 = 27
        "quantize": quantized,  # 2 x 7 = 14
        # 6 x 9 + 5 + 30 + 14 = 103
        "evaluate": models * (dense + one_shot + proxsparse + patch) + compared * maskllm + unstructured + quantized,
        "speedup": compared,
        "collect": 1,
        "compare": 1,
        "table": 7,  # joint, tile, unstructured, quantized, tasks, density, speedup
        "explore": 1,
        "overview": 1,
        "summary": 1,
        "pareto": models,
        "density": models,
        "curves": models,
        "speedup_figure": compared,
        "all": 1,
    }


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ("tasks: [piqa, arc_eazy]", "names 'arc_eazy', which is not a task of lm-eval; did you mean `arc_easy`"),
        ("num_fewshot: 5", "`evaluation.num_fewshot` is 5 for 'race', whose data has no examples"),
    ],
)
def test_tasks_are_checked_against_those_of_lm_eval(tmp_path, evaluation, message):
    (tmp_path / "changes.yaml").write_text(f"evaluation: {{{evaluation}}}\n")
    run = snakemake(tmp_path, "-n", "--configfile", "config/paper.yaml", "changes.yaml")
    assert run.returncode != 0 and message in run.stdout + run.stderr
    assert "Traceback" not in run.stdout + run.stderr


@pytest.mark.parametrize("config", ["smollm2-135m", "gemma-270m"])
def test_a_pretrained_model_has_each_job_once_and_no_other(tmp_path, config):
    jobs = dry_run(tmp_path, "--configfile", f"config/{config}.yaml")
    assert counts(jobs) == {
        "fetch_corpus": 1,
        "fetch_model": 1,
        "make_tasks": 1,
        "calibrate": 1,
        "tokenize": 3,
        # Four one-shot 2:4 masks, and six unstructured ones, of which SparseGPT's also rank the tiles.
        "prune": 10,
        "update_weights": 5,
        "learn": 5,  # proxsparse, maskllm, three ratios of PATCH
        "quantize": 7,
        "evaluate": 23,
        "collect": 1,
        "compare": 1,
        "table": 7,
        "speedup": 1,
        "speedup_figure": 1,
        "explore": 1,
        "overview": 1,
        "summary": 1,
        "pareto": 1,
        "density": 1,
        "curves": 1,
        "all": 1,
    }


def test_demo_is_the_default_and_has_each_job_once_and_no_other(tmp_path):
    models = 3
    assert counts(dry_run(tmp_path)) == {
        "fetch_corpus": 1,
        "make_tasks": 1,
        "make_tokenizer": 1,  # the models share vocabulary and corpus, and so all sequences
        "calibrate": 1,
        "tokenize": 2,
        "train_model": models,
        "prune": models * 10,
        "update_weights": models * 5,
        "learn": models * 5,
        "quantize": 7,
        "evaluate": models * 16 + 7,
        "speedup": models,
        "collect": 1,
        "compare": 1,
        "table": 8,
        "explore": 1,
        "overview": 1,
        "summary": 1,
        "pareto": models,
        "density": models,
        "curves": models,
        "speedup_figure": models,
        "all": 1,
    }


# Name -> number of learning jobs, number of evaluations, additional tables.
ABLATIONS = {
    "tile-size": (6 * 3, 1 + 6 * 3, ["tile_size"]),
    "target": (2 * 3, 1 + 2 * 3, ["target"]),
    "frozen-mask": (1 + 4 * 3 + 3, 1 + 4 * 3 + 3, ["frozen_mask"]),  # and MaskLLM, from which one of them starts
    "tile-prior": (5 * 3, 1 + 5 * 3, ["tile_prior"]),
    "unstructured": (5 * 3, 5 * (1 + 3 + 2 * 3), []),
    "quantized": (2 * 3, 2 + 2 * (1 + 2 * 3), []),
    "density": (6 * 3 + 1, 6 * (1 + 3), []),  # and ProxSparse at 13B, over which PATCH learns
    "nm-25": (6 + 1, 6 * (1 + 3 * 4 + 1), ["nm_25"]),
    "seeds": (3 * 3 * (1 + 1 + 3), 3 * (1 + 1 + 3 * (3 + 2 + 3)), []),  # dense and magnitude have no seed
    # Variants of patch-joint, MaskLLM and patch-tile, and the paper's recipe of each.
    "recipe": (3 * (1 + 11 + 1 + 8 + 1 + 6), 1 + 3 * (1 + 11 + 1 + 8 + 1 + 6), ["recipe"]),
    "finetune": (3 * (1 + 3), 3 * (1 + 3 * (3 + 3)), ["finetune"]),
    # MaskPro of five models and MaskLLM of three; dense, and 2:4 and unstructured one-shot methods, of all six.
    "baselines": (5 + 3, 6 * (1 + 6 + 7) + 5 + 3, ["baselines"]),
    "published-masks": (0, 6 * (1 + 3) + 4, []),
}


def test_each_ablation_has_a_dry_run():
    assert {path.stem for path in (ROOT / "config/ablations").glob("*.yaml")} == {
        *(*ABLATIONS, "demo", "demo-seeds", "demo-recipe", "demo-baselines", "pretrained-baselines")
    }


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_in_full(tmp_path, name):
    jobs = dry_run(tmp_path, "--configfile", f"config/ablations/{name}.yaml")
    found, (learned, evaluated, tables) = counts(jobs), ABLATIONS[name]
    assert (found.get("learn", 0), found["evaluate"]) == (learned, evaluated)
    written = {path for job in jobs if job.rule == "table" for path in job.files("output")}
    assert {f"results/{name}/tables/{table}.md" for table in tables} <= written
    standard = {"unstructured": "unstructured", "quantized": "quantized", "density": "density", "seeds": "seeds"}
    if name in standard:
        assert f"results/{name}/tables/{standard[name]}.md" in written


def test_the_profile_of_a_cluster_replaces_keys_of_the_profile_for_slurm(tmp_path):
    text = (ROOT / "docs/slurm.md").read_text()
    (profile,) = re.findall(r"```yaml\n# profiles/juwels/(.*?)```", text, flags=re.DOTALL)
    name, _, keys = profile.partition("\n")
    (tmp_path / "juwels").mkdir()
    (tmp_path / "juwels" / name).write_text(keys)
    options = ["--profile", "profiles/slurm", "--profile", "juwels", "--configfile", "config/demo.yaml"]
    jobs = dry_run(tmp_path, *options, "--until", "calibrate", "train_model")
    asked = {(job.rule, job.fields["resources"].split("slurm_partition=")[1].split(",")[0]) for job in jobs}
    assert {("calibrate", "batch"), ("train_model", "booster")} <= asked


def test_ablations_in_small_learn_nothing_twice(tmp_path):
    jobs = dry_run(tmp_path, "--configfile", "config/ablations/demo.yaml")
    ratios, maskllm, proxsparse = 3, 1, 1
    plain = maskllm + proxsparse + ratios
    sizes, layer, frozen, priors = 5, 1, 4, 4  # one tile, target and prior each is the default
    assert counts(jobs)["learn"] == plain + ratios * (sizes + layer + frozen + priors)
    written = {path for job in jobs if job.rule == "table" for path in job.files("output")}
    own = ("tile_size", "target", "frozen_mask", "tile_prior", "nm_25", "finetune")
    tables = ("unstructured", "quantized", "density", *own)
    assert {f"results/ablations/tables/{name}.md" for name in tables} <= written
    seeds = dry_run(tmp_path, "--configfile", "config/ablations/demo-seeds.yaml")
    assert counts(seeds)["learn"] == 3 * plain
    assert "results/ablations-seeds/tables/seeds.md" in {path for job in seeds for path in job.files("output")}
    recipes = dry_run(tmp_path, "--configfile", "config/ablations/demo-recipe.yaml")
    # The tile temperature of patch-joint, which the paper's configuration already has at 45 %.
    assert counts(recipes)["learn"] == ABLATIONS["recipe"][0] + 3
    assert "results/ablations-recipe/tables/recipe.md" in {path for job in recipes for path in job.files("output")}
    baselines = dry_run(tmp_path, "--configfile", "config/ablations/demo-baselines.yaml")
    assert counts(baselines)["learn"] == 2  # MaskLLM and MaskPro
    pruned = {job.fields["wildcards"] for job in baselines if job.rule == "prune"}
    assert len(pruned) == 6 + 7  # 2:4, and unstructured with the permutation
    written = {path for job in baselines for path in job.files("output")}
    assert "results/ablations-baselines/tables/baselines.md" in written


def test_nothing_is_made_twice(paper):
    made = Counter(path for job in paper for path in job.files("output"))
    assert made.most_common(1)[0][1] == 1
    assert max(Counter((job.rule, job.fields.get("wildcards")) for job in paper).values()) == 1


def test_one_shot_methods_of_a_model_share_their_sequences(paper):
    sequences = {
        (job.fields["wildcards"].partition(",")[0], path)
        for job in paper
        if job.rule in ("prune", "update_weights")
        for path in job.files("input")
        if path.startswith("work/sequences/")
    }
    assert len(sequences) == len({model for model, _ in sequences}) == 6


COMPUTING = ("self_test", "prune", "update_weights", "learn", "quantize", "evaluate", "speedup")


@pytest.mark.parametrize("rule", COMPUTING)
def test_jobs_that_compute_say_what_they_need(paper, rule):
    for job in (job for job in paper if job.rule == rule):
        assert job.resource("gpus") == (4 if rule == "learn" else 1)
        # MaskLLM at 8B, in four processes that each resume from a checkpoint, is far above all others.
        assert 8_000 <= job.resource("mem_mb") <= 750_000
        assert 10 <= job.resource("runtime") <= (5 if rule == "learn" else 2) * 24 * 60


def test_jobs_that_do_not_compute_on_a_gpu_ask_for_none(paper):
    cpu_only = [job for job in paper if job.rule not in COMPUTING]
    assert {"calibrate", "tokenize", "collect"} <= {job.rule for job in cpu_only}
    assert not any(job.resource("gpus") for job in cpu_only)


def test_jobs_on_a_gpu_wait_for_the_self_test(paper, tmp_path):
    path = "results/paper/self-test.json"
    assert [job.files("output") for job in paper if job.rule == "self_test"] == [[path]]
    waiting = {job.rule: path in job.files("input") for job in paper if job.rule != "self_test"}
    assert all((path in job.files("input")) == waiting[job.rule] for job in paper if job.rule in waiting)
    assert {rule for rule, waits in waiting.items() if waits} == {*COMPUTING} - {"self_test"}
    config = "{device: cuda}"
    changes = ["--config", f"resources={config}", "calibration={propagate: dense}"]
    ablation = dry_run(tmp_path, "--configfile", "config/ablations/finetune.yaml", *changes)
    path = "results/finetune/self-test.json"
    assert {job.rule for job in ablation if path in job.files("input")} >= {"finetune", "statistics", "evaluate"}
    on_a_cpu = dry_run(tmp_path, "--configfile", "config/paper.yaml", "--config", "resources={device: cpu}")
    assert counts(on_a_cpu) == {rule: number for rule, number in counts(paper).items() if rule != "self_test"}
    assert not any("self-test" in file for job in on_a_cpu for file in job.files("input"))


def test_speed_is_measured_alone_on_this_machine(tmp_path):
    jobs = dry_run(tmp_path, "--cores", "7")
    threads = {
        rule: {job.fields.get("threads", "1") for job in jobs if job.rule == rule} for rule in ("speedup", "learn")
    }
    assert threads == {"speedup": {"7"}, "learn": {"1"}}


def test_larger_models_ask_for_more(paper):
    learn = {job.fields["wildcards"]: job for job in paper if job.rule == "learn"}
    small, large = (
        learn[f"model={model}, learned={method}_hybrid_0.45_t128_s0"]
        for model, method in (("qwen2.5-0.5b", "patch-joint"), ("llama-3.1-8b", "patch-tile"))
    )
    assert large.resource("mem_mb") > small.resource("mem_mb")
    assert large.resource("runtime") > small.resource("runtime")


def test_a_learn_job_on_several_nodes(tmp_path):
    resources = "resources={device: cuda, learn_gpus: 4, learn_nodes: 2}"
    jobs = dry_run(tmp_path, "--configfile", "config/paper.yaml", "--config", resources)
    names = ("nodes", "tasks_per_node", "processes", "gpus")
    learned = [job for job in jobs if job.rule == "learn" and "proxsparse" not in job.fields["wildcards"]]
    assert {tuple(job.resource(name) for name in names) for job in learned} == {(2, 1, 4, 4)}


def test_jobs_that_can_go_on_say_so(paper):
    resumable = {job.rule for job in paper if "resumable=1" in job.fields.get("resources", "")}
    assert resumable == {"learn", "evaluate", "tokenize"}


def test_planning_imports_nothing_heavy(tmp_path):
    run = snakemake(tmp_path, "-n", "--configfile", "config/paper.yaml", python=("-X", "importtime"))
    assert run.returncode == 0, run.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if line.startswith("import time:")}
    assert "patch.pipeline.runs.plan" in imported
    assert not HEAVY & imported


@pytest.mark.parametrize("sparsity", [0.45, 0.35, 0.25])
def test_learning_settings_of_the_paper_are_the_published_ones(sparsity):
    grid = Grid(load_experiment(ROOT / "config/paper.yaml"))
    learned = [run for run in grid.runs if run.definition.stage == "learn" and not run.quantization]
    runs = {(run.method, run.model): grid.learning(run) for run in learned if run.sparsity == sparsity}
    joint, tile = runs["patch-joint", "qwen2.5-0.5b"], runs["patch-tile", "llama-3.1-8b"]
    largest = runs["patch-tile", "llama-2-13b"]
    for settings in (joint, tile, largest):
        assert (settings.steps, settings.batch_size, settings.seqlen) == (2000, 256, 4096)
        assert (settings.pattern_scale, settings.pattern_temperature) == ((100, 500), (4, 0.05))
    assert (joint.lr, joint.sparsity_reg, joint.weight_reg) == (1e-3, 7, 10)
    assert (tile.lr, tile.sparsity_reg, tile.weight_reg, tile.frozen_mask) == (1e-4, 3, 0.1, "import")
    assert (largest.lr, largest.sparsity_reg, largest.weight_reg) == (1e-3, 2, 0.05)
    assert largest.frozen_mask == "proxsparse"
    assert (joint.tile_scale, tile.tile_scale, largest.tile_scale) == ((25, 350), (100, 500), (100, 500))
    assert joint.tile_temperature == ((4, 0.05) if sparsity == 0.45 else (2, 0.05))
    assert tile.tile_temperature == largest.tile_temperature == (2, 0.05)


def test_proxsparse_of_the_paper_has_its_own_published_settings():
    grid = Grid(load_experiment(ROOT / "config/paper.yaml"))
    runs = {run.model: grid.learning(run) for run in grid.runs if run.method == "proxsparse"}
    for model, settings in runs.items():
        assert (settings.steps, settings.batch_size, settings.seqlen, settings.warmup_steps) == (400, 1, 4096, 40)
        assert settings.use.corpus == "c4" and settings.betas == (0.9, 0.999)
        published = {"llama-3.1-8b": (0.85, 5e-5), "llama-2-13b": (0.5, 1e-4)}.get(model, (0.25, 1e-4))
        assert (settings.prox_strength, settings.lr) == published
