"""Tests of ablations, imported masks, seeds of a block, and configuration files that override others."""

import copy

import pytest

from patch.errors import InputError
from patch.pipeline.config.load import validate_experiment
from patch.pipeline.runs.grid import Grid
from patch.pipeline.runs.run import Run

PATCH = {"methods": ["patch-joint"], "models": ["qwen"], "sparsity": [0.45]}
THEIRS = {"model": "qwen", "method": "patch", "sparsity": 0.45, "source": {"kind": "file", "path": "mask.npz"}}
MASKLLM = {"model": "llama", "method": "maskllm", "source": {"kind": "hub", "repo": "a/b"}}


def grid_of(raw: dict, *entries: dict, **changes: object) -> Grid:
    return Grid(validate_experiment(copy.deepcopy(raw) | {"grid": list(entries)} | changes))


def test_a_varied_setting_makes_a_run_for_each_value(raw_config):
    grid = grid_of(raw_config, PATCH | {"vary": {"tile_prior": ["none", "wanda"], "target": ["global", "layer"]}})
    assert [run.variant for run in grid.runs] == [
        "tile_prior=none,target=global",
        "tile_prior=none,target=layer",
        "tile_prior=wanda,target=global",
        "tile_prior=wanda,target=layer",
    ]
    settings = [grid.learning(run) for run in grid.runs]
    assert [(s.tile_prior, s.target) for s in settings] == [
        (prior, target) for prior in ("none", "wanda") for target in ("global", "layer")
    ]
    assert [sorted(grid.priors(run)) for run in grid.runs] == [["pattern"]] * 2 + [["pattern", "tile"]] * 2
    assert grid.runs[0].id == "patch-joint_hybrid_0.45_t4_tile_prior=none,target=global_s0"


def test_a_varied_value_is_the_last_word(raw_config):
    raw_config["learning"]["overrides"] = [{"method": "patch-joint", "set": {"lr": 0.5}}]
    grid = grid_of(raw_config, PATCH | {"vary": {"lr": [0.25, 1]}}, PATCH)
    assert [grid.learning(run).lr for run in grid.runs] == [0.25, 1.0, 0.5]
    assert [run.variant for run in grid.runs] == ["lr=0.25", "lr=1", None]


def test_pairs_are_varied(raw_config):
    vary = {"tile_temperature": [[4, 0.05], [2.0, 1e-05]], "betas": [[0.9, 0.999]]}
    grid = grid_of(raw_config, PATCH | {"vary": vary})
    assert [run.variant for run in grid.runs] == [
        "tile_temperature=4-0.05,betas=0.9-0.999",
        "tile_temperature=2-1e-05,betas=0.9-0.999",
    ]
    assert [(grid.learning(run).tile_temperature, grid.learning(run).betas) for run in grid.runs] == [
        ((4.0, 0.05), (0.9, 0.999)),
        ((2.0, 1e-05), (0.9, 0.999)),
    ]


def test_values_that_differ_in_the_last_digits_have_names_of_their_own(raw_config):
    values = [0.1234567, 0.12345671, 1e-05, 2.0, 1e20]
    grid = grid_of(raw_config, PATCH | {"vary": {"lr": values}})
    assert [run.variant for run in grid.runs] == ["lr=0.1234567", "lr=0.12345671", "lr=1e-05", "lr=2", "lr=1e+20"]
    assert [grid.learning(run).lr for run in grid.runs] == values


def test_methods_with_few_sparsities(raw_config):
    permuted = {"methods": ["ria_permuted"], "pattern": "unstructured"}
    assert [run.sparsity for run in grid_of(raw_config, permuted | {"sparsity": [0.25, 0.5]}).runs] == 2 * [0.25, 0.5]
    message = r"sparsity 0.45 of `ria_permuted` for `qwen`; it makes: 0.25, 0.5, 0.75"
    for entry in (permuted | {"sparsity": [0.45]}, PATCH | {"vary": {"tile_prior": ["ria_permuted"]}}):
        with pytest.raises(InputError, match=message):
            grid_of(raw_config, entry)


def test_a_varied_recipe_is_a_set_of_defaults(raw_config):
    grid = grid_of(raw_config, PATCH | {"vary": {"recipe": ["paper", "public-code"], "max_grad_norm": [2]}}, PATCH)
    paper, code, plain = (grid.learning(run) for run in grid.runs)
    assert paper == plain.model_copy(update={"max_grad_norm": 2})
    assert (code.max_grad_norm, code.append_eos, code.weight_reg_form) == (2, False, "norm_ratio")
    assert grid.runs[1].variant == "recipe=public-code,max_grad_norm=2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vary": {"tile_temperature": [4, 0.05]}}, r"`grid.vary.tile_temperature` has 4: .*such as \[\[2.0, 0.05\]\]"),
        ({"vary": {"tile_temperature": [[4]]}}, r"`grid.vary.tile_temperature` has \[4.0\]: .*list pairs"),
        ({"vary": {"tile_temperature": [[4, 0]]}}, r"tile_temperature is \[4.0, 0.0\]; both ends must be positive"),
        ({"vary": {"betas": [[0.9, 1.5]]}}, r"betas are \[0.9, 1.5\]"),
        ({"vary": {"betas": [["a", "b"]]}}, r"`grid.0.vary.betas.0` is \['a', 'b'\]: a varied value is part of a file"),
        (
            {"vary": {"tile_prior": [[1, 2]]}},
            r"`grid.vary.tile_prior` has \[1.0, 2.0\]: Input should be a valid string",
        ),
        ({"vary": {"use": [{"corpus": "text", "split": "train"}]}}, "`grid.0.vary`: `use` is a corpus and a split"),
        ({"vary": {"lr": -2}}, "`grid.vary.lr` has -2: Input should be greater than 0"),
        ({"vary": {"recipe": ["papers"]}}, "`grid.vary.recipe` is 'papers'; did you mean `paper`"),
        ({"vary": {"recipe": [True]}}, "`grid.vary.recipe` is True; known: paper, public-code"),
        ({"vary": {"tile_prio": ["none"]}}, r"`grid.vary.tile_prio`; did you mean `tile_prior`"),
        ({"vary": {"tile_prior": ["wandaa"]}}, r"`grid.vary.tile_prior` is 'wandaa'; did you mean `wanda`"),
        ({"vary": {"lr": [-1.0]}}, "greater than 0"),
        ({"vary": {"tile_prior": []}}, "at least 1 item"),
        ({"vary": {"tile_prior": ["a/b"]}}, "vary"),
        ({"methods": ["wanda"], "sparsity": None, "vary": {"lr": [1.0]}}, "`vary` has settings of learning"),
        ({"imports": ["x"]}, "only the method `import` reads"),
        ({"table": "a/b"}, "table"),
    ],
)
def test_what_cannot_be_varied(raw_config, change, message):
    with pytest.raises(InputError, match=message):
        grid_of(raw_config, PATCH | change)


def test_blocks_of_more_runs_than_anyone_means(raw_config):
    wanda = {"methods": ["wanda"], "pattern": "unstructured"}
    many = [index / 1000 for index in range(1, 1000)]
    assert len(grid_of(raw_config, wanda | {"sparsity": many}).runs) >= 999
    with pytest.raises(InputError, match=r"19,980 runs; use at most 10,000"):
        grid_of(raw_config, wanda | {"sparsity": many, "seeds": list(range(10))})
    ablation = {"methods": ["patch-joint"], "sparsity": [0.4]}
    lengths = {
        key: [index / 100 for index in range(1, 100)] for key in ("lr", "weight_reg", "sparsity_reg", "tile_std")
    }
    with pytest.raises(InputError, match="96,059,601 runs"):
        grid_of(raw_config, ablation | {"vary": lengths})
    names = {key: ["a" * 60] for key in ("tile_prior", "pattern_prior")}
    with pytest.raises(InputError, match="too long for a file"):
        grid_of(raw_config, ablation | {"vary": names})


def test_runs_of_tables_of_their_own(raw_config):
    grid = grid_of(raw_config, PATCH, PATCH | {"sparsity": [0.45, 0.25], "table": "mine"}, {"methods": ["dense"]})
    assert [(c.method, c.sparsity) for c in grid.tables["mine"]] == [("patch-joint", 0.45), ("patch-joint", 0.25)]
    assert [c.method for c in grid.tables[None]] == ["patch-joint", "dense", "dense"]
    assert len(grid.runs) == 4


def test_seeds_of_a_block(raw_config):
    grid = grid_of(raw_config, PATCH | {"seeds": [3, 1]}, {"methods": ["magnitude"], "seeds": [3, 1]}, PATCH)
    assert [(c.method, c.seed) for c in grid.runs if c.model == "qwen"] == [
        ("patch-joint", 3),
        ("patch-joint", 1),
        ("magnitude", 0),
        ("patch-joint", 0),
    ]


def test_imported_masks_keep_the_method_that_made_them(raw_config):
    imports = {"theirs": THEIRS, "llm": MASKLLM}
    grid = grid_of(raw_config, {"methods": ["import"]}, imports=imports)
    assert grid.runs == [
        Run(model="qwen", method="patch-joint", pattern="hybrid", sparsity=0.45, tile=4, variant="import=theirs"),
        Run(model="llama", method="maskllm", pattern="2:4", sparsity=0.5, variant="import=llm"),
    ]
    one = grid.runs[0]
    assert (one.imported, one.definition.stage, one.definition.seeded, grid.priors(one)) == (
        "theirs",
        "import",
        False,
        {},
    )
    assert grid.closure == grid.runs
    chosen = grid_of(raw_config, {"methods": ["import"], "imports": ["llm"], "quantization": "absmax"}, imports=imports)
    assert [run.id for run in chosen.runs] == ["maskllm_2of4_0.5_import=llm_s0_absmax"]
    assert chosen.closure[0] == grid.runs[1]
    seeds = {"methods": ["import"], "models": ["qwen"], "quantization": "slim-lora", "seeds": [0, 1]}
    assert [run.seed for run in grid_of(raw_config, seeds, imports=imports).runs] == [0, 1]


FINETUNING = {"use": {"corpus": "text", "split": "train"}, "batch_size": 4}


def test_fine_tuned_runs_follow_their_pruned_runs(raw_config):
    imports = {"llm": MASKLLM}
    blocks = [
        {"methods": ["magnitude", "sparsegpt"], "models": ["qwen"], "finetune": "lora", "seeds": [0, 1]},
        PATCH | {"vary": {"target": ["layer"]}, "finetune": "full"},
        {"methods": ["import"], "finetune": "full", "seeds": [2]},
    ]
    grid = grid_of(raw_config, *blocks, imports=imports, finetuning=FINETUNING)
    assert [run.id for run in grid.runs] == [
        # The order of the data depends on the seed even if the mask does not.
        "magnitude_2of4_0.5_s0_finetune-lora",
        "magnitude_2of4_0.5_s1_finetune-lora",
        "sparsegpt_2of4_0.5_s0_finetune-lora",
        "sparsegpt_2of4_0.5_s1_finetune-lora",
        "patch-joint_hybrid_0.45_t4_target=layer_s0_finetune-full",
        "maskllm_2of4_0.5_import=llm_s2_finetune-full",
    ]
    assert [run.pruned.id for run in grid.runs] == [
        "magnitude_2of4_0.5_s0",
        "magnitude_2of4_0.5_s0",
        "sparsegpt_2of4_0.5_s0",
        "sparsegpt_2of4_0.5_s1",
        "patch-joint_hybrid_0.45_t4_target=layer_s0",
        "maskllm_2of4_0.5_import=llm_s0",
    ]
    assert all(grid.closure.index(run.pruned) < grid.closure.index(run) for run in grid.runs)
    assert len({run.row for run in grid.runs}) == 4
    assert (grid.finetuning(grid.runs[0]).lora_rank, grid.finetuning(grid.runs[4]).batch_size) == (8, 4)


@pytest.mark.parametrize(
    ("entry", "finetuning", "message"),
    [
        ({}, None, "`finetune` is 'lora' but the section `finetuning` is missing; write `finetuning: {use:"),
        ({"finetune": "lorra"}, FINETUNING, "`grid.0.finetune` is 'lorra'.*'full' or 'lora'"),
        ({"methods": ["dense", "wanda"]}, FINETUNING, "`finetune` is 'lora' for the method `dense`, which has no mask"),
        ({"quantization": "absmax"}, FINETUNING, "`finetune` is 'lora' with `quantization` 'absmax'.*use two blocks"),
        ({}, FINETUNING | {"use": {"corpus": "texts", "split": "train"}}, "`finetuning.use.corpus` is 'texts'; .*text"),
        ({}, FINETUNING | {"steps": 0}, "`finetuning.steps` is 0"),
        ({}, FINETUNING | {"rank": 8}, "unknown key `finetuning.rank`; did you mean `lora_rank`"),
        ({}, FINETUNING | {"micro_batch_size": 3}, "micro_batch_size 3 does not divide batch_size 4"),
    ],
)
def test_what_cannot_be_fine_tuned(raw_config, entry, finetuning, message):
    with pytest.raises(InputError, match=message):
        grid_of(raw_config, {"methods": ["wanda"], "finetune": "lora"} | entry, finetuning=finetuning)


def test_processes_that_cannot_divide_a_batch_of_fine_tuning(raw_config):
    changes = {"finetuning": FINETUNING, "resources": {"learn_gpus": 3}}
    with pytest.raises(InputError, match="a batch of 4 in micro-batches of 1 makes 4, which 3 processes"):
        grid_of(raw_config, {"methods": ["wanda"], "finetune": "lora"}, **changes)


def test_an_imported_updating_method_has_no_weights(raw_config):
    imports = {"one": {"model": "qwen", "method": "sparsegpt", "source": {"kind": "file", "path": "m.npz"}}}
    (run,) = grid_of(raw_config, {"methods": ["import"]}, imports=imports).runs
    assert not run.definition.updates_weights and run.definition.statistics == "none"


def test_learning_starts_from_an_imported_mask(raw_config):
    raw_config["learning"]["methods"] = {"patch-tile": {"frozen_mask": "import"}}
    entry = {"methods": ["patch-tile"], "models": ["llama"], "sparsity": [0.25]}
    grid = grid_of(raw_config, entry, imports={"llm": MASKLLM})
    assert grid.priors(grid.runs[0])["frozen"].imported == "llm"
    with pytest.raises(InputError, match=r"must have one 2:4 mask of it; it has: none"):
        grid_of(raw_config, entry, imports={"theirs": THEIRS})
    with pytest.raises(InputError, match="it has: llm, more"):
        grid_of(raw_config, entry, imports={"llm": MASKLLM, "more": MASKLLM})


@pytest.mark.parametrize(
    ("imports", "entry", "message"),
    [
        ({"a": THEIRS | {"model": "qwenn"}}, {}, r"`imports.a.model` is 'qwenn'; did you mean `qwen`"),
        ({"a": THEIRS | {"method": "patchh"}}, {}, "`imports.a`: unknown method `patchh`"),
        ({"a": THEIRS | {"sparsity": None}}, {}, "`imports.a`: `patch-joint` with pattern `hybrid` needs `sparsity`"),
        ({"a": THEIRS | {"sparsity": 0.7}}, {}, r"`imports.a`: sparsity 0.7 .* outside \[0, 0.5\]"),
        ({"a": THEIRS | {"tile": 16}}, {}, "`imports.a`: tile 16 does not divide"),
        ({"a": THEIRS | {"pattern": "unstructured"}}, {}, "`imports.a`: .*cannot make pattern `unstructured`"),
        ({"a": THEIRS}, {"imports": ["b"]}, "unknown import `b`; known: a"),
        ({"a": THEIRS}, {"models": ["llama"]}, "no mask of llama"),
        ({"a": THEIRS}, {"sparsity": [0.3]}, r"`sparsity` of the method `import` is \[0.3\]; say it under `imports`"),
        ({"a": THEIRS}, {"vary": {"lr": [0.1]}}, "`vary` of the method `import`"),
        ({}, {}, "no mask of qwen, llama; name one under `imports`"),
    ],
)
def test_what_cannot_be_imported(raw_config, imports, entry, message):
    with pytest.raises(InputError, match=message):
        grid_of(raw_config, {"methods": ["import"]} | entry, imports=imports)
