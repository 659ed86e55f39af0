"""Tests of the runs of a grid, their names and their dependencies."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patch.errors import InputError
from patch.masks.pattern import WHOLE_MATRIX
from patch.pipeline.config.load import validate_experiment
from patch.pipeline.runs.grid import Grid
from patch.pipeline.runs.plan import Plan
from patch.pipeline.runs.run import Run, format_sparsity, nm_sparsity

ONE_SHOT = ["magnitude", "wanda", "sparsegpt"]


def grid_of(raw: dict, **changes: Any) -> Grid:
    return Grid(validate_experiment(copy.deepcopy(raw) | changes))


@st.composite
def entries(draw: st.DrawFn) -> list[dict]:
    """Draw grid entries of every allowed kind."""
    sparsities = st.lists(st.floats(0, 0.5), min_size=1, max_size=3)
    kinds = {
        "dense": {"methods": ["dense"]},
        "n:m": {
            "methods": draw(st.lists(st.sampled_from(ONE_SHOT), min_size=1, max_size=3)),
            "pattern": draw(st.sampled_from(["2:4", "1:4", "3:4", "4:8"])),
        },
        "unstructured": {
            "methods": draw(st.lists(st.sampled_from(ONE_SHOT), min_size=1, max_size=3)),
            "pattern": "unstructured",
            "sparsity": draw(sparsities),
        },
        "maskllm": {"methods": ["maskllm"]},
        "hybrid": {
            "methods": draw(st.lists(st.sampled_from(["patch", "patch-joint", "patch-tile"]), min_size=1, max_size=2)),
            "sparsity": draw(sparsities),
        },
    }
    chosen = draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=5))
    return [kinds[kind] for kind in chosen]


@given(entries(), st.lists(st.integers(0, 3), min_size=1, max_size=3), st.sampled_from(["maskllm", "wanda"]))
def test_properties(raw_config: dict, chosen: list[dict], seeds: list[int], frozen: str) -> None:
    raw = copy.deepcopy(raw_config)
    raw["learning"]["methods"] = {"patch-tile": {"frozen_mask": frozen}}
    grid = grid_of(raw, grid=chosen, seeds=seeds)
    assert len(set(grid.runs)) == len(grid.runs) and set(grid.runs) <= set(grid.closure)
    names = [(run.model, run.id) for run in grid.closure]
    assert len(set(names)) == len(names)
    done: set[Run] = set()
    for run in grid.closure:
        assert re.fullmatch(r"[a-z0-9._-]+", run.id), run.id
        assert grid.run(run.model, run.id) == run
        priors = set(grid.priors(run).values())
        assert priors <= done, "a prior comes after what needs it"
        done.add(run)
        if run.method in ("dense", "magnitude"):
            assert run.seed == 0
        else:
            assert run.seed in seeds
        assert all(prior.model == run.model for prior in priors)
    needed = set(grid.runs)
    for run in reversed(grid.closure):
        if run in needed:
            needed |= set(grid.priors(run).values())
    assert needed == set(grid.closure), "the closure holds a run that nobody needs"


def test_runs_of_the_small_grid(raw_config: dict) -> None:
    grid = grid_of(raw_config)
    assert [run.id for run in grid.runs if run.model == "qwen"] == [
        "dense_dense_0_s0",
        "magnitude_2of4_0.5_s0",
        "wanda_2of4_0.5_s0",
        "sparsegpt_2of4_0.5_s0",
        "maskllm_2of4_0.5_s0",
        "patch-joint_hybrid_0.45_t4_s0",
        "patch-joint_hybrid_0.25_t4_s0",
        "wanda_unstructured_0.25_s0",
    ]
    llama = [run.id for run in grid.runs if run.model == "llama"]
    assert llama[5:7] == ["patch-tile_hybrid_0.45_t4_s0", "patch-tile_hybrid_0.25_t4_s0"]
    extra = [(run.model, run.id) for run in grid.closure if run not in grid.runs]
    assert sorted(extra) == [
        (model, f"sparsegpt_unstructured_{sparsity}_s0") for model in ("llama", "qwen") for sparsity in ("0.25", "0.45")
    ]


def test_priors(raw_config: dict) -> None:
    grid = grid_of(raw_config, seeds=[3])

    def run(model: str, method: str, sparsity: float) -> Run:
        return next(c for c in grid.runs if (c.model, c.method, c.sparsity) == (model, method, sparsity))

    assert grid.priors(run("qwen", "patch-joint", 0.45)) == {
        "pattern": Run(model="qwen", method="sparsegpt", pattern="2:4", sparsity=0.5, seed=3),
        "tile": Run(model="qwen", method="sparsegpt", pattern="unstructured", sparsity=0.45, seed=3),
    }
    assert grid.priors(run("llama", "patch-tile", 0.25)) == {
        "frozen": Run(model="llama", method="maskllm", pattern="2:4", sparsity=0.5, seed=3),
        "tile": Run(model="llama", method="sparsegpt", pattern="unstructured", sparsity=0.25, seed=3),
    }
    assert grid.priors(run("qwen", "maskllm", 0.5)) == {
        "pattern": Run(model="qwen", method="sparsegpt", pattern="2:4", sparsity=0.5, seed=3)
    }
    assert grid.priors(run("qwen", "wanda", 0.5)) == {}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"pattern_prior": "none", "tile_prior": "none"}, set()),
        ({"pattern_prior": "none", "tile_prior": "random"}, set()),
        ({"pattern_prior": "magnitude", "tile_prior": "magnitude"}, {("magnitude", 0)}),
        ({"pattern_prior": "wanda", "tile_prior": "magnitude"}, {("magnitude", 0), ("wanda", 2)}),
    ],
)
def test_choice_of_priors(keys: dict, expected: set, raw_config: dict) -> None:
    raw_config["learning"]["methods"] = {"patch-joint": keys}
    grid = grid_of(raw_config, grid=[{"methods": ["patch-joint"], "sparsity": [0.4], "models": ["qwen"]}], seeds=[2])
    assert {(prior.method, prior.seed) for prior in grid.priors(grid.runs[0]).values()} == expected


def added(raw: dict, changed: dict) -> set[str]:
    before = {f"{run.model}/{run.id}" for run in grid_of(raw).closure}
    after = {f"{run.model}/{run.id}" for run in grid_of(changed).closure}
    assert before <= after
    return after - before


def test_a_new_ratio_adds_its_runs(raw_config: dict) -> None:
    changed = copy.deepcopy(raw_config)
    changed["grid"][1]["sparsity"] = [0.45, 0.25, 0.35]
    assert added(raw_config, changed) == {
        "qwen/patch-joint_hybrid_0.35_t4_s0",
        "llama/patch-tile_hybrid_0.35_t4_s0",
        "qwen/sparsegpt_unstructured_0.35_s0",
        "llama/sparsegpt_unstructured_0.35_s0",
    }


def test_a_new_model_adds_its_runs(raw_config: dict) -> None:
    changed = copy.deepcopy(raw_config)
    changed["models"]["other"] = copy.deepcopy(changed["models"]["qwen"])
    assert added(raw_config, changed) == {
        f"other/{run.id}" for run in grid_of(raw_config).closure if run.model == "qwen"
    }


def test_a_new_seed_adds_what_a_seed_changes(raw_config: dict) -> None:
    names = added(raw_config, raw_config | {"seeds": [0, 1]})
    unseeded = {run for run in grid_of(raw_config).closure if run.method in ("dense", "magnitude")}
    assert names == {
        f"{run.model}/{run.id.removesuffix('_s0')}_s1" for run in grid_of(raw_config).closure if run not in unseeded
    }


def test_a_new_method_adds_its_runs(raw_config: dict) -> None:
    raw_config["grid"][0]["methods"].remove("maskllm")
    changed = copy.deepcopy(raw_config)
    changed["grid"].append({"methods": ["magnitude"], "pattern": "4:8"})
    assert added(raw_config, changed) == {"qwen/magnitude_4of8_0.5_s0", "llama/magnitude_4of8_0.5_s0"}
    changed = copy.deepcopy(raw_config)
    changed["grid"].append({"methods": ["maskllm"], "models": ["qwen"]})
    assert added(raw_config, changed) == {"qwen/maskllm_2of4_0.5_s0"}


def test_new_tiles_are_runs_of_their_own(raw_config: dict) -> None:
    changed = copy.deepcopy(raw_config)
    changed["grid"].append({"methods": ["patch"], "sparsity": [0.45], "tiles": [4, 8], "models": ["llama"]})
    assert added(raw_config, changed) == {"llama/patch-tile_hybrid_0.45_t8_s0"}


def test_repeated_entries_are_one_run(raw_config: dict) -> None:
    twice = raw_config | {"grid": raw_config["grid"] * 2, "seeds": [0, 0]}
    assert grid_of(twice).runs == grid_of(raw_config).runs


@pytest.mark.parametrize("sparsities", [[0.45, 0.45000000001], [0.0, -0.0], [0.3, 0.1 + 0.2], [1e-12, 2e-12]])
def test_sparsities_that_print_alike_are_one_run(sparsities: list[float], raw_config: dict) -> None:
    grid = grid_of(raw_config, grid=[{"methods": ["patch"], "sparsity": sparsities, "models": ["qwen"]}])
    assert len({run.id for run in grid.runs}) == len(grid.runs)
    assert all(run.id == grid.run("qwen", run.id).id for run in grid.runs)


def test_unknown_run_suggests_the_closest(raw_config: dict) -> None:
    with pytest.raises(InputError, match="did you mean `wanda_2of4_0.5_s0`?"):
        grid_of(raw_config).run("qwen", "wanda_2of4_0.5_s7")


def test_learning_settings_in_order(raw_config: dict) -> None:
    raw_config["learning"] |= {
        "methods": {"patch-tile": {"lr": 0.5, "sparsity_reg": 1.0}},
        "overrides": [
            {"method": "patch-tile", "set": {"lr": 0.6}},
            {"model": "llama", "sparsity": 0.25, "set": {"lr": 0.7}},
            {"model": "qwen", "set": {"weight_reg": 9.0}},
        ],
    }
    grid = grid_of(raw_config)
    settings = {(c.model, c.method, c.sparsity): grid.learning(c) for c in grid.runs if c.definition.stage == "learn"}
    assert settings["llama", "patch-tile", 0.45].lr == 0.6
    assert settings["llama", "patch-tile", 0.25].lr == 0.7
    assert settings["llama", "patch-tile", 0.25].sparsity_reg == 1.0
    assert settings["llama", "patch-tile", 0.25].weight_reg == 0.1, "the method's published default"
    assert settings["llama", "patch-tile", 0.25].tile_scale == (100.0, 500.0)
    assert settings["qwen", "patch-joint", 0.25].weight_reg == 9.0
    assert settings["qwen", "patch-joint", 0.25].lr == 1e-3
    assert settings["llama", "maskllm", 0.5].weight_reg_decay is True


def test_published_hyper_parameters(raw_config: dict) -> None:
    """Compare the defaults with the paper's table; the configuration sets only the text."""
    raw_config["learning"]["common"] = {"use": {"corpus": "text", "split": "train"}}
    grid = grid_of(raw_config)
    joint, tile = (grid.learning(next(c for c in grid.runs if c.method == m)) for m in ("patch-joint", "patch-tile"))
    assert (joint.lr, joint.tile_scale, joint.tile_temperature) == (1e-3, (25.0, 350.0), (2.0, 0.05))
    assert (joint.sparsity_reg, joint.weight_reg, joint.weight_reg_decay) == (7.0, 10.0, False)
    assert (joint.pattern_scale, joint.pattern_temperature, joint.pattern_prior_strength) == ((100, 500), (4, 0.05), 3)
    assert (tile.lr, tile.tile_scale, tile.tile_temperature) == (1e-4, (100.0, 500.0), (2.0, 0.05))
    assert (tile.sparsity_reg, tile.weight_reg, tile.frozen_mask) == (3.0, 0.1, "maskllm")
    for settings in (joint, tile):
        assert (settings.steps, settings.batch_size, settings.seqlen) == (2000, 256, 4096)
        assert (settings.warmup_steps, settings.betas, settings.tile_std) == (5, (0.9, 0.95), 0.014)


def test_the_recipe_comes_before_all_given_keys(raw_config: dict) -> None:
    raw_config["learning"] |= {"recipe": "public-code", "methods": {"patch-joint": {"max_grad_norm": 2.0}}}
    raw_config["learning"]["common"] |= {"pattern_std": 0.5}
    grid = grid_of(raw_config)
    joint = grid.learning(next(run for run in grid.runs if run.method == "patch-joint"))
    assert (joint.weight_reg_form, joint.pattern_noise) == ("norm_ratio", "replace")
    assert (joint.max_grad_norm, joint.pattern_std) == (2.0, 0.5)
    tile = next(run for run in grid.runs if run.method == "patch-tile")
    assert grid.priors(tile)["tile"].method == "wanda"


@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", 0.5), ("3:4", 0.25), ("1:4", 0.75), ("4:4", 0.0)])
def test_nm_sparsity(pattern: str, sparsity: float) -> None:
    assert nm_sparsity(pattern) == sparsity


def test_format_of_sparsities() -> None:
    assert [format_sparsity(value) for value in (0.5, 0.45, 0.0, 1 / 3)] == ["0.5", "0.45", "0", "0.333333"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {
                "corpora": {
                    "text": {"source": {"split": {"train": 0.9, "calibration": 0.1, "validation": 0, "test": 0}}}
                }
            },
            ["test", "no text"],
        ),
        ({"evaluation": {"num_fewshot": {"clozed": 5}}}, ["num_fewshot", "'clozed'", "did you mean `cloze`"]),
        ({"evaluation": {"num_fewshot": -1}}, ["evaluation.num_fewshot", "-1", "give 5"]),
        ({"evaluation": {"num_fewshot": {"cloze": "five"}}}, ["evaluation.num_fewshot", "{'cloze': 'five'}", "give 5"]),
        ({"evaluation": {"num_fewshot": 5}}, ["evaluation.num_fewshot", "5", "'cloze'", "no examples"]),
        ({"evaluation": {"acc_norm": True}}, ["evaluation.acc_norm", "cloze"]),
        ({"evaluation": {"acc_norm": "both"}}, ["evaluation.acc_norm", "'both'"]),
        ({"evaluation": {"tasks": ["cloze", "cloze"]}}, ["cloze", "more than once"]),
        ({"learning": {"common": {"betas": [2, 0.9]}}}, ["betas", "[0, 1)"]),
        ({"learning": {"recipe": "code"}}, ["learning.recipe", "'code'", "'paper' or 'public-code'"]),
        ({"learning": {"common": {"target_reduction": "mean"}}}, ["target_reduction", "target is global", "block"]),
        ({"published": "nowhere.json"}, ["published", "nowhere.json"]),
        ({"speedup": {"models": ["qwem"]}}, ["`speedup.models` names 'qwem'", "did you mean `qwen`?"]),
        ({"speedup": {"new_tokens": [8, 8]}}, ["speedup.new_tokens", "[8, 8]", "each number once"]),
        ({"speedup": {"new_tokens": [8, 1]}}, ["speedup.new_tokens.1"]),
    ],
)
def test_what_would_fail_after_hours_fails_at_once(change: dict, words: list[str], raw_config: dict) -> None:
    def merge(into: dict, new: dict) -> dict:
        return into | {k: merge(into.get(k, {}), v) if isinstance(v, dict) else v for k, v in new.items()}

    with pytest.raises(InputError) as error:
        Plan(validate_experiment(merge(raw_config, change)))
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"learn_gpus": 3}, "makes 4, which 3 processes .* make batch_size a multiple of 3, or use 2 of them"),
        ({"learn_gpus": 2, "learn_nodes": 4}, "makes 4, which 8 processes"),
    ],
)
def test_batches_that_the_processes_cannot_share(resources: dict, message: str, raw_config: dict) -> None:
    grid_of(raw_config, resources={"learn_gpus": 2, "learn_nodes": 2})
    with pytest.raises(InputError, match=message):
        grid_of(raw_config, resources=resources)


def test_one_tile_a_layer_has_a_name(raw_config: dict) -> None:
    grid = grid_of(raw_config, grid=[{"methods": ["patch"], "sparsity": [0.4], "tiles": ["matrix", 4]}])
    assert [run.id for run in grid.runs if run.model == "qwen"] == [
        "patch-joint_hybrid_0.4_tmatrix_s0",
        "patch-joint_hybrid_0.4_t4_s0",
    ]
    by_default = grid_of(raw_config, tile="matrix")
    assert any(run.tile == WHOLE_MATRIX for run in by_default.runs)


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("pattern_prior", "sparsgpt", "sparsegpt"),
        ("pattern_prior", "maskllm", "thanos"),
        ("tile_prior", "proxsparse", "random"),
        ("frozen_mask", "patch-joint", "proxsparse"),
    ],
)
def test_a_prior_that_cannot_be_one(key: str, value: str, right: str, raw_config: dict) -> None:
    raw_config["learning"]["common"][key] = value
    with pytest.raises(InputError, match=f"`learning.common.{key}` is '{value}'.*{right}"):
        grid_of(raw_config)


def test_maskpro_starts_from_a_mask(raw_config: dict) -> None:
    grid = grid_of(raw_config, grid=[{"methods": ["maskpro"]}])
    assert {run.method for run in grid.closure} == {"maskpro", "sparsegpt"}
    raw_config["learning"]["methods"] = {"maskpro": {"pattern_prior": "none"}}
    with pytest.raises(InputError, match="`learning.methods.maskpro.pattern_prior` of maskpro is 'none'; name"):
        grid_of(raw_config, grid=[{"methods": ["maskpro"]}])


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "thanos"])
def test_any_one_shot_mask_is_a_prior(method: str, raw_config: dict) -> None:
    raw_config["learning"]["common"] |= {"pattern_prior": method, "tile_prior": method, "frozen_mask": method}
    grid = grid_of(raw_config, grid=[{"methods": ["patch"], "sparsity": [0.4]}])
    assert {run.method for run in grid.closure} == {method, "patch-joint", "patch-tile"}


def test_proxsparse_may_be_frozen_and_runs_in_any_number_of_processes(raw_config: dict) -> None:
    raw_config["learning"] |= {"methods": {"patch-tile": {"frozen_mask": "proxsparse"}}}
    raw_config["learning"]["common"].pop("batch_size")
    resources = {"learn_gpus": 4, "learn_nodes": 2}
    grid = grid_of(raw_config, grid=[{"methods": ["patch"], "sparsity": [0.4]}], resources=resources)
    runs = {run.method: run for run in grid.closure if run.model == "llama"}
    assert grid.processes == 8 and grid.learning(runs["proxsparse"]).batch_size == 1
    assert grid.priors(runs["patch-tile"])["frozen"] == runs["proxsparse"]
    assert grid.priors(runs["proxsparse"]) == {}


@pytest.mark.parametrize(
    ("model", "gpus", "message"),
    [
        # 2 key and value heads of 6, and GPT-2's smallest common divisor of 72, 24 and 96 rows.
        ("qwen", 13, "`qwen` over 13 processes .*more than the 12 rows of k_proj; use 12 of them"),
        ("gpt2", 5, "`gpt2` over 5 processes .*no divisor of the 72 rows of qkv_proj; use 4 of them"),
        ("gpt2", 16, "`gpt2` over 16 processes .*no divisor of the 72 rows of qkv_proj; use 12 of them"),
    ],
)
def test_processes_that_cannot_shard_the_weights(model: str, gpus: int, message: str, raw_config: dict) -> None:
    sizes = {"n_embd": 24, "n_layer": 2, "n_head": 2}
    source = raw_config["models"]["qwen"]["source"] | {"architecture": "gpt2", "config": sizes}
    raw_config["models"]["gpt2"] = raw_config["models"]["qwen"] | {"source": source}
    grid = [{"methods": ["proxsparse"], "models": [model]}]
    with pytest.raises(InputError, match=f"proxsparse shards the weights of model {message}"):
        grid_of(raw_config, grid=grid, resources={"learn_gpus": gpus})
    fitting = int(message.split("use ")[1].split()[0])
    assert grid_of(raw_config, grid=grid, resources={"learn_gpus": fitting}).processes == fitting
