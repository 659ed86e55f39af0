"""Tests that the settings of a job hold exactly the values that its result depends on."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patch.files.plain import read_yaml
from patch.pipeline.config.load import DEFAULT_CONFIG, validate_experiment
from patch.pipeline.runs.layout import Layout, digest
from patch.pipeline.runs.plan import Plan
from patch.pipeline.runs.run import Run

JobSettings = dict[tuple[str, str, str], str]


def plan_of(raw: dict) -> Plan:
    return Plan(validate_experiment(copy.deepcopy(raw)))


def settings(raw: dict) -> JobSettings:
    """Return the settings of all jobs of a plan as JSON, by (stage, model, run)."""
    plan = plan_of(raw)
    found: JobSettings = {}
    for run in plan.grid.closure:
        if run.definition.stage == "prune":
            found["prune", run.model, run.id] = plan.settings.prune(run).model_dump_json()
        if run.definition.stage == "learn":
            found["learn", run.model, run.id] = plan.settings.learn(run).model_dump_json()
    for run in plan.grid.runs:
        found["evaluate", run.model, run.id] = plan.settings.evaluate(run).model_dump_json()
    for name in plan.timed_models:
        found["speedup", name, ""] = plan.settings.speedup(name).model_dump_json()
    for name in plan.experiment.models:
        found["model", name, ""] = plan.store.model_settings(name).model_dump_json()
        found["tokenizer", name, ""] = plan.store.tokenizer_settings(name).model_dump_json()
    for key, sequences in plan.sequences.items():
        found["sequences", key, ""] = sequences.settings.model_dump_json()
    return found


def difference(raw: dict, change: Callable[[dict], None]) -> tuple[set, set]:
    """Return the added or removed jobs, and those whose settings changed."""
    changed = copy.deepcopy(raw)
    change(changed)
    before, after = settings(raw), settings(changed)
    return set(before) ^ set(after), {key for key in set(before) & set(after) if before[key] != after[key]}


def learned(raw: dict, *methods: str, model: str | None = None) -> set:
    """Return the learn and evaluate jobs of the methods' runs."""
    plan = plan_of(raw)
    runs = [c for c in plan.grid.runs if c.method in methods and model in (None, c.model)]
    return {(stage, c.model, c.id) for c in runs for stage in ("learn", "evaluate")}


def set_at(*path: Any) -> Callable[[dict], None]:
    *keys, last, value = path

    def change(raw: dict) -> None:
        for key in keys:
            raw = raw.setdefault(key, {})
        raw[last] = value

    return change


def test_nothing_changes_by_itself(raw_config: dict) -> None:
    assert difference(raw_config, lambda raw: None) == (set(), set())


ADDITIONS: dict[str, Callable[[dict], None]] = {
    "ratio": lambda raw: raw["grid"][1]["sparsity"].append(0.35),
    "model": lambda raw: raw["models"].update(other=copy.deepcopy(raw["models"]["qwen"])),
    "seed": set_at("seeds", [0, 1]),
    "method": lambda raw: raw["grid"].append({"methods": ["magnitude"], "pattern": "4:8"}),
    "tile": lambda raw: raw["grid"].append(
        {"methods": ["patch"], "sparsity": [0.4], "tiles": [8], "models": ["llama"]}
    ),
    "corpus": lambda raw: raw["corpora"].update(more=copy.deepcopy(raw["corpora"]["text"])),
}


@pytest.mark.parametrize("addition", ADDITIONS)
def test_additions_leave_all_others_alone(addition: str, raw_config: dict) -> None:
    different, changed = difference(raw_config, ADDITIONS[addition])
    assert changed == set()
    assert bool(different) == (addition != "corpus")


def test_learning_rate_of_joint(raw_config: dict) -> None:
    different, changed = difference(raw_config, set_at("learning", "methods", {"patch-joint": {"lr": 0.5}}))
    assert different == set() and changed == learned(raw_config, "patch-joint")


def test_learning_rate_of_maskllm_reaches_what_is_built_on_it(raw_config: dict) -> None:
    """Check that patch-tile, frozen on maskllm's mask, changes with it, and that patch-joint does not."""
    different, changed = difference(raw_config, set_at("learning", "methods", {"maskllm": {"lr": 0.5}}))
    assert different == set() and changed == learned(raw_config, "maskllm", "patch-tile")


def test_learning_rate_of_one_run(raw_config: dict) -> None:
    override = [{"model": "qwen", "sparsity": 0.25, "method": "patch-joint", "set": {"lr": 0.5}}]
    _, changed = difference(raw_config, set_at("learning", "overrides", override))
    name = "patch-joint_hybrid_0.25_t4_s0"
    assert changed == {("learn", "qwen", name), ("evaluate", "qwen", name)}


def test_damping_touches_sparsegpt_and_what_starts_from_it(raw_config: dict) -> None:
    _, changed = difference(raw_config, set_at("pruning", {"sparsegpt": {"damp": 0.1}}))
    methods = {run_id.split("_")[0] for _, _, run_id in changed}
    assert methods == {"sparsegpt", "maskllm", "patch-joint", "patch-tile"}
    assert {stage for stage, _, _ in changed} == {"prune", "learn", "evaluate"}


def test_batch_size_of_calibration_does_not_touch_magnitude(raw_config: dict) -> None:
    _, changed = difference(raw_config, set_at("calibration", "batch_size", 2))
    methods = {run_id.split("_")[0] for stage, _, run_id in changed if stage == "prune"}
    assert methods == {"wanda", "sparsegpt"}


def test_calibration_samples_touch_everything_calibrated(raw_config: dict) -> None:
    _, changed = difference(raw_config, set_at("calibration", "samples", 5))
    assert {run_id.split("_")[0] for _, _, run_id in changed} == {
        "wanda",
        "sparsegpt",
        "maskllm",
        "patch-joint",
        "patch-tile",
    }


def test_evaluation_touches_evaluation_alone(raw_config: dict) -> None:
    _, changed = difference(raw_config, set_at("evaluation", "limit", 3))
    assert {stage for stage, _, _ in changed} == {"evaluate"}
    assert len(changed) == len(plan_of(raw_config).grid.runs)


def test_one_model_s_training_touches_that_model_alone(raw_config: dict) -> None:
    _, changed = difference(raw_config, set_at("models", "qwen", "source", "training", {"lr": 0.9}))
    assert {model for stage, model, _ in changed} == {"qwen"}
    assert {stage for stage, _, _ in changed} == {"model", "prune", "learn", "evaluate"}


PUBLISHED = Path(__file__).parents[4] / "config/published.json"


@pytest.mark.parametrize(
    "path",
    [("resources", key, 2) for key in ("threads", "learn_gpus", "learn_nodes", "cpu_gflops")]
    + [("published", str(PUBLISHED))],
)
def test_what_changes_no_number_runs_nothing_again(path: tuple, raw_config: dict) -> None:
    assert difference(raw_config, set_at(*path)) == (set(), set())


@pytest.mark.parametrize("path", [("models", "qwen", "title", "T"), ("models", "qwen", "comparable", False)])
def test_titles_run_no_stage_again(path: tuple, raw_config: dict) -> None:
    assert difference(raw_config, set_at(*path)) == (set(), set())


def test_split_seed_of_the_corpus_touches_everything(raw_config: dict) -> None:
    different, changed = difference(raw_config, set_at("corpora", "text", "source", "split", {"seed": 1}))
    assert {stage for stage, _, _ in changed} == {"tokenizer", "model", "prune", "learn", "evaluate"}
    assert {stage for stage, _, _ in different} == {"sequences"}, "sequences have their content in their names"


def test_experiments_share_what_is_equal(raw_config: dict) -> None:
    one, other = plan_of(raw_config), plan_of(raw_config | {"experiment": "second", "seeds": [4]})
    assert one.store.model_path("qwen") == other.store.model_path("qwen")
    assert one.store.tokenizer_path("qwen") == other.store.tokenizer_path("qwen")
    assert one.store.corpus_path("text") == other.store.corpus_path("text")
    assert one.store.perplexity_sequences("qwen") == other.store.perplexity_sequences("qwen")
    assert one.store.calibration_sequences("qwen", 0) != other.store.calibration_sequences("qwen", 4)
    run = one.grid.runs[0]
    assert not set(vars(one.layout).values()) & set(vars(other.layout).values())
    assert one.layout.record(run) != other.layout.record(run)


def test_inputs_of_jobs(raw_config: dict) -> None:
    plan = plan_of(raw_config)
    runs = {(c.model, c.method, c.pattern): c for c in plan.grid.runs}
    assert set(plan.inputs.prune(runs["qwen", "magnitude", "2:4"])) == {"model"}
    assert set(plan.inputs.prune(runs["qwen", "wanda", "2:4"])) == {"model", "sequences"}
    assert set(plan.inputs.prior(runs["qwen", "patch-joint", "hybrid"])) == {"pattern_mask", "tile_mask"}
    assert set(plan.inputs.prior(runs["llama", "patch-tile", "hybrid"])) == {"frozen_mask", "tile_mask"}
    assert set(plan.inputs.evaluate(runs["qwen", "dense", "dense"])) == {"model", "sequences", "tasks"}
    assert "weights" in plan.inputs.evaluate(runs["qwen", "sparsegpt", "2:4"])
    assert "weights" not in plan.inputs.evaluate(runs["qwen", "wanda", "2:4"])
    for run in plan.grid.closure:
        if run.definition.stage == "learn":
            assert plan.inputs.learn(run)["sequences"] in {sequences.path for sequences in plan.sequences.values()}
        if run.definition.stage == "prune" and run.definition.statistics != "none":
            assert plan.inputs.prune(run)["sequences"] in {sequences.path for sequences in plan.sequences.values()}


def test_paths_are_distinct(raw_config: dict) -> None:
    plan = plan_of(raw_config | {"seeds": [0, 1]})
    layout, paths = plan.layout, []
    for run in plan.grid.closure:
        paths += [part(run) for part in (layout.mask, layout.weights, layout.curve, layout.checkpoints)]
        paths += [layout.record(run), layout.partial_record(run)]
    assert len(set(paths)) == len(paths)
    assert all(not Path(path).is_absolute() and ".." not in path and " " not in path for path in paths)


def test_learning_sequences_are_no_more_than_a_run_can_see(raw_config: dict) -> None:
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "head_dim": 6, "vocab_size": 50}
    raw_config["models"]["qwen"]["source"] = {"kind": "hub", "repo": "a/b", "revision": "1234567", "shape": shape}
    plan = plan_of(raw_config)
    samples = {
        c.model: plan.learning_sequences(c).settings.samples for c in plan.grid.runs if c.definition.stage == "learn"
    }
    # 32 more are held out.
    assert samples == {"qwen": 5 * 4 + 32, "llama": None}


def test_sequences_without_end_tokens_are_another_file(raw_config: dict) -> None:
    """Only learning reads it: a trained model, and everything made from it, stay the same."""
    before = plan_of(raw_config)
    raw_config["learning"]["common"]["append_eos"] = False
    after = plan_of(raw_config)
    run = next(run for run in after.grid.runs if run.method == "patch-joint")
    assert after.learning_sequences(run).settings.kind == "packed-without-eos"
    kinds = {sequences.settings.kind for sequences in (*before.sequences.values(), *after.sequences.values())}
    assert kinds == {"packed", "packed-without-eos", "calibration", "joined"}
    assert after.store.model_path("qwen") == before.store.model_path("qwen")


def test_local_files_of_a_corpus(raw_config: dict, tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.jsonl"):
        (tmp_path / name).write_text("x")
    raw_config["corpora"]["more"] = {"source": {"kind": "files", "files": [f"{tmp_path}/*.txt", f"{tmp_path}/c.jsonl"]}}
    assert plan_of(raw_config).store.corpus_files("more") == [
        f"{tmp_path}/{name}" for name in ("a.txt", "b.txt", "c.jsonl")
    ]


def test_digest_depends_on_values_and_not_on_their_order() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    assert len(digest(None)) == 8


def test_layout_examples() -> None:
    layout, run = (
        Layout("demo"),
        Run(model="qwen", method="patch-joint", pattern="hybrid", sparsity=0.45, tile=16),
    )
    assert layout.mask(run) == "results/demo/masks/qwen/patch-joint_hybrid_0.45_t16_s0.safetensors"
    assert layout.checkpoints(run) == "work/demo/checkpoints/qwen/patch-joint_hybrid_0.45_t16_s0"


def test_settings_survive_the_command_line(raw_config: dict) -> None:
    """Settings are passed to a job as JSON and are equal after reading."""
    plan = plan_of(raw_config)
    for run in plan.grid.runs:
        settings = plan.settings.evaluate(run)
        assert type(settings).model_validate(json.loads(settings.model_dump_json())) == settings
        if run.definition.stage == "learn":
            settings = plan.settings.learn(run)
            assert type(settings).model_validate(json.loads(settings.model_dump_json())) == settings


def test_dense_statistics_are_one_folder_for_all_methods_and_ratios_of_a_model(raw_config: dict) -> None:
    raw_config["calibration"]["propagate"] = "dense"
    raw_config["grid"].append({"methods": ["wanda", "thanos"], "pattern": "unstructured", "sparsity": [0.4, 0.3]})
    plan = plan_of(raw_config)
    assert {(each.model, each.settings.gram) for each in plan.statistics.values()} == {
        ("qwen", True),
        ("llama", True),
    }
    for run in plan.grid.closure:
        if run.definition.stage == "prune":
            inputs = plan.inputs.prune(run)
            assert "sequences" not in inputs
            assert ("statistics" in inputs) == (run.method != "magnitude")
            folders = {each.path for each in plan.statistics.values() if each.model == run.model}
            assert inputs.get("statistics") in {*folders, None}
    assert plan_of(raw_config | {"seeds": [0, 1]}).statistics.keys() > plan.statistics.keys()


def test_without_a_method_that_needs_them_there_are_no_gram_matrices(raw_config: dict) -> None:
    raw_config["calibration"]["propagate"] = "dense"
    plan = plan_of(raw_config | {"grid": [{"methods": ["wanda", "magnitude"]}]})
    assert [each.settings.gram for each in plan.statistics.values()] == [False, False]
    assert plan_of(raw_config | {"grid": [{"methods": ["magnitude"]}]}).statistics == {}


def test_a_way_of_propagation_touches_what_is_calibrated(raw_config: dict) -> None:
    _, changed = difference(raw_config, set_at("calibration", "propagate", "dense"))
    pruned = {run_id.split("_")[0] for stage, _, run_id in changed if stage == "prune"}
    assert pruned == {"wanda", "sparsegpt"}


def test_a_quantised_run_has_the_mask_of_the_pruned_one(raw_config: dict) -> None:
    for quantization in ("absmax", "slim-lora"):
        raw_config["grid"] += [
            {"methods": ["sparsegpt", "magnitude", "dense"], "quantization": quantization, "models": ["qwen"]},
            {"methods": ["patch"], "sparsity": [0.25], "quantization": quantization, "models": ["qwen"]},
        ]
    plan = plan_of(raw_config)
    runs = [run for run in plan.grid.runs if run.quantization]
    assert len({run.id for run in runs}) == len({plan.layout.record(run) for run in runs}) == 8
    for run in runs:
        inputs = plan.inputs.quantize(run)
        assert inputs.get("mask") == (None if run.method == "dense" else plan.layout.mask(run.pruned))
        assert ("weights" in inputs) == (run.method == "sparsegpt")
        assert ("sequences" in inputs) == (run.quantization == "slim-lora")
        assert set(plan.inputs.evaluate(run)) == {"model", "sequences", "tasks", "quantized"} | (set(inputs) & {"mask"})
        assert plan.settings.mask_digest(run) != plan.settings.mask_digest(run.pruned)
        assert set(plan.inputs.export(run)) == {"model", "quantized"} | (set(inputs) & {"mask"})
        exported = plan.settings.export(run)
        assert exported.quantized == plan.settings.mask_digest(run) and exported.record == plan.settings.record_digest(
            run
        )
        assert exported.form == ("compressed-tensors" if run.method == "dense" else "packed")
    assert {run.method for run in plan.updated_runs} == {"sparsegpt"}


def test_a_fine_tuned_run_has_the_mask_and_weights_of_the_pruned_one(raw_config: dict) -> None:
    raw_config["finetuning"] = {"use": {"corpus": "text", "split": "train"}, "batch_size": 4}
    raw_config["grid"] = [
        {"methods": ["sparsegpt", "magnitude"], "models": ["qwen"], "finetune": "lora"},
        {"methods": ["patch"], "models": ["qwen"], "sparsity": [0.25], "finetune": "full"},
    ]
    plan = plan_of(raw_config)
    for run in plan.grid.runs:
        inputs = plan.inputs.finetune(run)
        updated = run.method == "sparsegpt"
        # Not the updated weights, which are temporary: fine-tuning would run again whenever they are made again.
        assert set(inputs) == {"model", "sequences", "mask"} | ({"calibration"} if updated else set())
        assert plan.settings.finetune(run).pruning == (plan.settings.prune(run.pruned) if updated else None)
        assert inputs["mask"] == plan.layout.mask(run.pruned) == plan.masks.mask(run)
        assert inputs["sequences"] in {sequences.path for sequences in plan.sequences.values()}
        later = plan.inputs.evaluate(run)
        assert later["weights"] == plan.inputs.export(run)["weights"] == plan.layout.finetuned(run)
        settings = plan.settings.evaluate(run)
        assert settings.mask.digest == plan.settings.mask_digest(run.pruned)
        assert settings.finetuned == plan.settings.export(run).finetuned == plan.settings.mask_digest(run)
    assert not plan.updated_runs
    assert {run.id for run in plan.masks.made} >= {run.pruned.id for run in plan.grid.runs}
    assert plan.tables() == ["joint", "tasks"] and plan.figures("qwen") == ["pareto"]
    digests = {run.finetune: plan.settings.mask_digest(run) for run in plan.grid.runs}
    raw_config["finetuning"]["lora_rank"] = 4
    changed = {run.finetune: plan_of(raw_config).settings.mask_digest(run) for run in plan.grid.runs}
    assert changed["lora"] != digests["lora"] and changed["full"] == digests["full"]


def test_every_pruned_or_quantised_run_is_exported_in_a_form_of_its_pattern(raw_config: dict) -> None:
    raw_config["grid"] += [
        {"methods": ["wanda"], "pattern": "unstructured", "sparsity": [0.3], "models": ["qwen"]},
        {"methods": ["dense"], "quantization": "absmax", "models": ["qwen"]},
    ]
    plan = plan_of(raw_config)
    assert {run.id for run in plan.grid.runs} - {run.id for run in plan.exported_runs} == {"dense_dense_0_s0"}
    forms = {run.pattern: plan.settings.export(run).form for run in plan.exported_runs}
    assert forms == {"2:4": "packed", "hybrid": "packed", "unstructured": "dense", "dense": "compressed-tensors"}
    assert plan.settings.export(plan.exported_runs[0], "dense").form == "dense"


def test_settings_of_speed_touch_speed_alone(raw_config: dict) -> None:
    raw_config["speedup"] = {}
    assert plan_of(raw_config).settings.speedup("qwen").speedup.model_dump() == {
        "batch_size": 16,
        "prompt": 128,
        "new_tokens": [128],
        "repeats": 20,
        "models": None,
    }
    different, changed = difference(raw_config, set_at("speedup", {"batch_size": 4}))
    assert different == set() and changed == {("speedup", "qwen", ""), ("speedup", "llama", "")}
    different, changed = difference(raw_config, set_at("speedup", {"models": ["llama"]}))
    assert different == {("speedup", "qwen", "")} and changed == set(), "the speed of others does not depend on it"
    assert difference(raw_config, set_at("resources", "threads", 2)) == (set(), set())
    different, _ = difference(raw_config, set_at("speedup", None))
    assert {stage for stage, *_ in different} == {"speedup"}


def test_speed_is_that_of_one_2_4_run_and_of_every_tile_map(raw_config: dict) -> None:
    raw_config |= {"speedup": {}, "seeds": [0, 1]}
    raw_config["grid"] += [
        {"methods": ["patch-tile"], "models": ["qwen"], "sparsity": [0.45]},
        {"methods": ["patch"], "models": ["qwen"], "sparsity": [0.25], "quantization": "absmax"},
        {"methods": ["patch"], "models": ["qwen"], "sparsity": [0.25], "vary": {"target": ["block"]}, "table": "own"},
    ]
    plan = plan_of(raw_config)
    runs = plan.timed_runs("qwen")
    assert [run.id for run in runs] == [
        "magnitude_2of4_0.5_s0",
        "patch-joint_hybrid_0.45_t4_s0",
        "patch-joint_hybrid_0.25_t4_s0",
        "patch-tile_hybrid_0.45_t4_s0",
    ]
    assert plan.inputs.speedup("qwen") == {
        "model": plan.store.model_path("qwen"),
        "masks": [plan.layout.mask(run) for run in runs],
    }
    assert [run.id for run in plan.settings.speedup("qwen").runs] == [run.id for run in runs]


def test_without_sparse_runs_there_is_no_speed(raw_config: dict) -> None:
    raw_config |= {"speedup": {}, "grid": [{"methods": ["dense"]}, {"methods": ["wanda"], "pattern": "1:4"}]}
    plan = plan_of(raw_config)
    assert plan.timed_models == [] and "speedup" not in plan.tables() and "speedup" not in plan.figures("qwen")


def test_settings_of_quantisation_touch_quantised_runs_alone(raw_config: dict) -> None:
    raw_config["grid"].append({"methods": ["wanda"], "quantization": "absmax"})
    _, changed = difference(raw_config, set_at("quantization", {"bits": 3}))
    assert changed == {("evaluate", model, "wanda_2of4_0.5_s0_absmax") for model in ("qwen", "llama")}


def test_the_pruned_run_of_one_that_is_not_in_the_grid_is_made(raw_config: dict) -> None:
    raw_config["grid"] = [{"methods": ["magnitude"], "pattern": "4:8", "quantization": "slim-lora"}]
    plan = plan_of(raw_config | {"seeds": [3, 4]})
    assert {(run.method, run.seed, run.quantization) for run in plan.grid.closure} == {
        ("magnitude", 0, None),
        ("magnitude", 3, "slim-lora"),
        ("magnitude", 4, "slim-lora"),
    }


def test_jobs_are_short_for_models_that_the_workflow_trains_on_a_cpu() -> None:
    raw = read_yaml(DEFAULT_CONFIG)
    assert plan_of(raw).short_jobs
    assert not plan_of(raw | {"resources": {"device": "cuda"}}).short_jobs
    fetched = read_yaml("config/paper.yaml")
    assert not plan_of(fetched | {"resources": fetched.get("resources", {}) | {"device": "cpu"}}).short_jobs
