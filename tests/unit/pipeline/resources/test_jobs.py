"""Tests of the jobs read from Snakemake: their order, their resources, and pending ones."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from patch.pipeline.cli.workflow import _open_workflow
from patch.pipeline.resources.jobs import Job, JobGraph
from patch.pipeline.runs.job_files import read_inputs

from ..conftest import Project, find


def rules(jobs: Iterable[Job]) -> dict[str, int]:
    return dict(Counter(job.rule for job in jobs))


def test_each_job_follows_those_that_it_needs(project: Project) -> None:
    graph = project.graph()
    place = {job: index for index, job in enumerate(graph.jobs)}
    assert all(place[need] < place[job] for job in graph.jobs for need in job.needs)
    assert graph.remaining == graph.jobs
    assert rules(graph.jobs) == {
        "fetch_corpus": 1,
        "make_tokenizer": 1,
        "make_tasks": 1,
        "calibrate": 1,  # two models of one vocabulary
        "tokenize": 3,  # to train on, to learn masks on, for perplexity: three lengths or parts
        "train_model": 2,
        # magnitude, wanda and sparsegpt at 2:4, wanda at 25 %, and sparsegpt at 45 and 25 % to rank tiles
        "prune": 2 * 6,
        "update_weights": 2,
        "learn": 2 * 3,
        "evaluate": 2 * 8,
        "collect": 1,
        "compare": 1,
        "table": 5,
        "explore": 1,
        "overview": 1,
        "summary": 1,
        "pareto": 2,
        "density": 2,
        "curves": 2,
    }


def test_a_job_has_the_names_and_files_of_its_rule(project: Project) -> None:
    graph = project.graph()
    learn = find(graph, "learn", "qwen/maskllm")
    name = "maskllm_2of4_0.5_s0"
    assert (learn.model, learn.name, learn.of_run, learn.stage) == ("qwen", name, True, "learn")
    assert learn.outputs == (f"results/tiny/masks/qwen/{name}.safetensors", f"results/tiny/curves/qwen/{name}.jsonl")
    assert learn.log == f"results/tiny/logs/learn/qwen/{name}.log"
    train = find(graph, "train_model", "llama")
    assert (train.model, train.of_run) == ("llama", False)
    assert (find(graph, "pareto", "qwen").of_run, find(graph, "collect").model) == (False, None)
    # The figure shows the chance accuracy, which it reads from a record.
    assert {need.rule for need in find(graph, "pareto").needs} == {"collect", "evaluate"}


def test_a_rule_of_no_known_stage_is_a_stage(project: Project) -> None:
    graph = project.graph()
    added = replace(find(graph, "collect"), rule="my_rule")
    stages = JobGraph(graph.plan, [*graph.jobs, added]).stages
    assert stages["my_rule"] == [added] and list(stages)[-1] == "my_rule"


def test_nothing_remains_of_a_finished_run(project: Project) -> None:
    project.finish(project.graph())
    graph = project.graph()
    assert graph.remaining == [] and graph.tasks() == []


def test_another_seed_trains_no_model_again(project: Project) -> None:
    project.finish(project.graph())
    remaining = rules(project.graph("seeds=[1]").remaining)
    assert remaining["calibrate"] == 1 and remaining["prune"] > 0 and "train_model" not in remaining


def test_a_deleted_record_makes_weights_but_no_mask_again(project: Project) -> None:
    graph = project.graph()
    project.finish(graph)
    Path(find(graph, "evaluate", "qwen/sparsegpt").outputs[0]).unlink()
    after = {"collect": 1, "compare": 1, "table": 5, "pareto": 2, "explore": 1, "overview": 1, "summary": 1}
    assert rules(project.graph().remaining) == {"update_weights": 1, "evaluate": 1, **after}


def test_cores_and_gpus(project: Project) -> None:
    slots = {}
    for device in ("cpu", "cuda"):
        project.raw["resources"] = {"device": device, "threads": 3, "learn_gpus": 2, "learn_nodes": 2}
        slots[device] = {job.stage: job.slots for job in project.graph().jobs}
    assert slots["cuda"].pop("self-test") == 1
    light, computing = ("fetch", "tabulate"), ("prune", "update", "evaluate")
    cores = dict.fromkeys(light, 1) | dict.fromkeys((*computing, "train", "tokenize"), 3) | {"learn": 3 * 2 * 2}
    gpus = dict.fromkeys((*light, "train", "tokenize"), 0) | dict.fromkeys(computing, 1) | {"learn": 2 * 2}
    assert slots == {"cpu": cores, "cuda": gpus}


def test_the_number_of_gpus_of_an_evaluation(project: Project) -> None:
    """It is a resource and an option of the stage, and its change does not rerun the job."""
    found = {}
    for count in (1, 2):
        project.raw["resources"] = {"device": "cuda", "gpu_memory_gb": 0.0001, "learn_gpus": count}
        evaluate = find(project.graph(), "evaluate", "qwen/dense")
        assert evaluate.gpus == count
        with _open_workflow(Namespace(configfile=["tiny.yaml"], config=[])) as workflow:
            workflow._prepare_dag(forceall=False, ignore_incomplete=True, lock_warn_only=True)
            workflow._build_dag()
            job = next(job for job in workflow.dag.jobs if evaluate.outputs[0] in job.output)
            options = job.params.inputs
            workflow.globals["JOB_FILES"].write()
        found[count] = (read_inputs(options), job.non_derived_params)
    assert found[2][0] == found[1][0] | {"gpus": "2"} and "gpus" not in found[1][0]
    assert found[1][1] == found[2][1]


def test_weights_are_held_from_pruning_to_evaluation(project: Project) -> None:
    # Large enough to be more than one MB.
    project.raw["models"]["qwen"]["source"]["config"] |= {"hidden_size": 512, "intermediate_size": 1024}
    graph = project.graph()
    weights = find(graph, "update_weights", "qwen/sparsegpt").disk_mb
    assert weights > 1

    def held(rule: str) -> tuple[float, float]:
        graph = project.graph()
        job = find(graph, rule, "qwen/sparsegpt_2of4")
        task = graph.tasks()[graph.remaining.index(job)]
        return task.claims - job.kept_mb, task.frees

    assert held("prune") == (weights, 0)
    assert held("update_weights") == (0, 0)
    assert held("evaluate") == (0, weights)
    project.make(find(graph, "prune", "qwen/sparsegpt_2of4"))
    assert held("update_weights") == (weights, 0)
    assert held("evaluate") == (0, weights)


def test_existing_checkpoints_need_no_space_again(project: Project) -> None:
    graph = project.graph()
    before = find(graph, "learn", "qwen/maskllm")
    run = graph.plan.grid.run("qwen", before.name)
    folder = Path(graph.plan.layout.checkpoints(run))
    folder.mkdir(parents=True)
    (folder / "step-00000001.pt").write_bytes(bytes(100_000_000))
    after = find(project.graph(), "learn", "qwen/maskllm")
    assert (before.scratch_mb, after.scratch_mb) == (pytest.approx(1), 0)
    assert before.kept_mb - after.kept_mb == pytest.approx(0, abs=1)
