"""The jobs of an experiment: which there are, in what order, and which a run would do."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import pytest

from patch.pipeline.config.load import validate_experiment
from patch.pipeline.resources.graph import JobGraph
from patch.pipeline.resources.jobs import Node
from patch.pipeline.runs.plan import Plan


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw_config: dict) -> None:
    raw_config["published"] = str(Path("config/published.json").resolve())
    monkeypatch.chdir(tmp_path)


def graph_of(raw: dict, **options) -> JobGraph:
    raw = copy.deepcopy(raw)
    return JobGraph(Plan(validate_experiment(raw)), **options)


def make(*nodes: Node) -> None:
    for path in (Path(path) for node in nodes for path in node.outputs):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def finish(graph: JobGraph) -> None:
    make(*(node for node in graph.nodes if node.rule != "update_weights"))


def find(graph: JobGraph, rule: str, name: str = "", model: str | None = None) -> Node:
    return next(n for n in graph.nodes if n.rule == rule and name in n.name and model in (None, n.model))


def rules(nodes: list[Node]) -> dict[str, int]:
    return dict(Counter(node.rule for node in nodes))


def test_every_job_stands_after_what_it_needs(raw_config: dict) -> None:
    graph = graph_of(raw_config)
    place = {node: index for index, node in enumerate(graph.nodes)}
    assert all(place[need] < place[node] for node in graph.nodes for need in graph.needs(node))
    assert graph.remaining == graph.nodes


def test_jobs_of_the_tests_configuration(raw_config: dict) -> None:
    assert rules(graph_of(raw_config).nodes) == {
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
        "overview": 1,
        "summary": 1,
        "pareto": 2,
        "density": 2,
        "curves": 2,
    }


def test_a_model_without_a_run_is_not_made(raw_config: dict) -> None:
    raw_config["grid"] = [{"methods": ["dense"], "models": ["qwen"]}]
    graph = graph_of(raw_config)
    assert [node.name for node in graph.nodes if node.rule == "train_model"] == ["qwen"]
    assert "calibrate" not in rules(graph.nodes)


def test_nothing_remains_of_a_finished_run(raw_config: dict) -> None:
    finish(graph_of(raw_config))
    graph = graph_of(raw_config)
    assert graph.remaining == [] and graph.tasks() == []


def test_a_deleted_record_makes_weights_but_no_mask_again(raw_config: dict) -> None:
    graph = graph_of(raw_config)
    finish(graph)
    Path(find(graph, "evaluate", "sparsegpt", "qwen").outputs[0]).unlink()
    remaining = rules(graph_of(raw_config).remaining)
    after = {"collect": 1, "compare": 1, "table": 5, "pareto": 2, "overview": 1, "summary": 1}
    assert remaining == {"update_weights": 1, "evaluate": 1, **after}


def test_what_nothing_needs_any_more_is_not_made_again(raw_config: dict) -> None:
    graph = graph_of(raw_config)
    finish(graph)
    for node in graph.nodes:
        if node.stage in ("fetch", "tokenize", "train"):
            Path(node.outputs[0]).unlink()
    assert graph_of(raw_config).remaining == []


def test_what_follows_from_a_job_that_runs_runs(raw_config: dict) -> None:
    graph = graph_of(raw_config)
    finish(graph)
    for path in find(graph, "learn", "maskllm", "llama").outputs:
        Path(path).unlink()
    assert graph_of(raw_config).remaining == [], "the record and the figure that it was needed for are there"
    Path(find(graph, "curves", "llama").outputs[0]).unlink()
    # The figure asks for the curve; with it comes the mask, and what starts from that.
    remaining = graph_of(raw_config).remaining
    assert {(node.rule, node.name) for node in remaining if node.model == "llama"} == {
        ("learn", "maskllm_2of4_0.5_s0"),
        ("learn", "patch-tile_hybrid_0.45_t4_s0"),
        ("learn", "patch-tile_hybrid_0.25_t4_s0"),
        ("evaluate", "maskllm_2of4_0.5_s0"),
        ("evaluate", "patch-tile_hybrid_0.45_t4_s0"),
        ("evaluate", "patch-tile_hybrid_0.25_t4_s0"),
        ("pareto", "llama"),
        ("density", "llama"),
        ("curves", "llama"),
    }


def test_speed_is_measured_of_each_model_with_sparse_runs(raw_config: dict) -> None:
    raw_config["grid"].append({"methods": ["dense"], "models": ["qwen", "llama"]})
    raw_config["grid"][0]["models"] = raw_config["grid"][1]["models"] = raw_config["grid"][2]["models"] = ["qwen"]
    before = graph_of(raw_config)
    assert "speedup" not in rules(before.nodes)
    raw_config["speedup"] = {}
    graph = graph_of(raw_config)
    (node,) = (node for node in graph.nodes if node.rule == "speedup")
    assert (node.name, node.outputs) == ("qwen", ("results/tiny/speedup/qwen.json",))
    made = {need.name for need in graph.needs(node)}
    hybrid = {f"patch-joint_hybrid_{level}_t4_s0" for level in (0.45, 0.25)}
    assert made == {"qwen", "magnitude_2of4_0.5_s0", *hybrid}
    added = Counter(rules(graph.nodes)) - Counter(rules(before.nodes))
    assert added == {"speedup": 1, "speedup_figure": 1, "table": 1}
    finish(graph)
    Path(node.outputs[0]).unlink()
    assert rules(graph_of(raw_config).remaining) == {"speedup": 1, "speedup_figure": 1, "table": 1, "summary": 1}


def test_what_snakemake_says_it_will_make(raw_config: dict) -> None:
    outputs = find(graph_of(raw_config), "evaluate", "dense", "qwen").outputs
    graph = graph_of(raw_config, outputs={outputs[0], "something/else"})
    assert [node.outputs for node in graph.remaining] == [outputs]


def test_cores_and_gpus(raw_config: dict) -> None:
    slots = {}
    for device in ("cpu", "cuda"):
        resources = {"device": device, "threads": 3, "learn_gpus": 2, "learn_nodes": 2}
        graph = graph_of(raw_config | {"resources": resources})
        slots[device] = {node.stage: graph.slots(node) for node in graph.nodes}
    light, computing = ("fetch", "tokenize", "tabulate"), ("prune", "update", "evaluate")
    cores = dict.fromkeys(light, 1) | dict.fromkeys((*computing, "train", "tokenize"), 3) | {"learn": 3 * 2 * 2}
    gpus = dict.fromkeys((*light, "train"), 0) | dict.fromkeys(computing, 1) | {"learn": 2 * 2}
    assert slots == {"cpu": cores, "cuda": gpus}


def test_weights_are_held_from_pruning_to_evaluation(raw_config: dict) -> None:
    graph = graph_of(raw_config)
    weights = graph.disk.weights(find(graph, "prune", "sparsegpt", "qwen").run)

    def held(graph: JobGraph, rule: str) -> tuple[float, float]:
        node = find(graph, rule, "sparsegpt_2of4", "qwen")
        task = graph.tasks()[graph.remaining.index(node)]
        return round(task.claims - node.space.kept, 9), task.frees

    assert held(graph, "prune") == (round(weights, 9), 0)
    assert held(graph, "update_weights") == (0, 0)
    assert held(graph, "evaluate") == (0, weights)
    make(
        find(graph, "prune", "sparsegpt_2of4", "qwen"),
        *(n for n in graph.nodes if n.stage in ("fetch", "train", "tokenize")),
    )
    graph = graph_of(raw_config)
    assert held(graph, "update_weights") == (round(weights, 9), 0)
    assert held(graph, "evaluate") == (0, weights)


def test_checkpoints_that_are_there_take_no_room_again(raw_config: dict) -> None:
    graph = graph_of(raw_config)
    node = find(graph, "learn", "maskllm", "qwen")

    def task(graph: JobGraph):
        return graph.tasks()[graph.nodes.index(find(graph, "learn", "maskllm", "qwen"))]

    assert task(graph).claims == pytest.approx(node.space.kept + node.space.scratch)
    folder = Path(graph.plan.layout.checkpoints(node.run))
    folder.mkdir(parents=True)
    (folder / "step-00000001.pt").write_bytes(bytes(1000))
    assert task(graph_of(raw_config)).claims == pytest.approx(node.space.kept + node.space.scratch - 1e-3)
    assert task(graph_of(raw_config)).frees == node.space.scratch
