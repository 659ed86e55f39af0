"""An experiment that extends the tiny one: ablations, seeds, import of an exported mask, and reuse."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from patch.masks.packed import load_masks

PATCH = {"methods": ["patch"], "models": ["local"], "sparsity": [0.45]}
MORE = {
    "extends": "tiny.yaml",
    "experiment": "more",
    "reuse": ["tiny"],
    "imports": {
        "back": {
            "model": "local",
            "method": "patch",
            "sparsity": 0.45,
            "source": {"kind": "file", "path": "back/mask.npz"},
        },
        "by-hand": {"model": "trained", "method": "maskllm", "source": {"kind": "file", "path": "by-hand.npz"}},
    },
    "learning": {"methods": {"patch-tile": {"frozen_mask": "import"}}},
    "grid": [
        {"methods": ["dense"], "models": ["local"]},
        {"methods": ["maskllm"], "models": ["local"], "seeds": [0, 1]},
        PATCH,
        {"methods": ["import"]},
        {"methods": ["patch"], "models": ["trained"], "sparsity": [0.25]},
        PATCH | {"vary": {"tile_prior": ["none", "sparsegpt"]}, "table": "tile_prior"},
        PATCH | {"tiles": [16, 4], "table": "tile_size"},
    ],
}


@pytest.fixture(scope="module")
def folder(finished: Path, patch_command) -> Path:
    """Return the folder of the tiny experiment, prepared for this one."""
    run = patch_command(finished, "export", "local/patch-joint_hybrid_0.45_t16_s0", "back", "--form", "dense")
    assert run.returncode == 0, run.stdout + run.stderr
    # A mask in MaskLLM's format that keeps the first two of each four weights of every layer.
    masks = load_masks(finished / "results/tiny/masks/trained/sparsegpt_2of4_0.5_s0.safetensors").masks
    first_two = {
        f"{name}.weight.mask": np.packbits(np.tile([1, 1, 0, 0], mask.numel() // 4)) for name, mask in masks.items()
    }
    np.savez_compressed(finished / "by-hand.npz", **first_two)
    (finished / "more.yaml").write_text(yaml.safe_dump(MORE))
    return finished


@pytest.fixture(scope="module")
def jobs(folder: Path, snakemake, planned) -> Counter:
    """Run the experiment and return its jobs by rule."""
    jobs = planned(folder, "more.yaml")
    run = snakemake(folder, config="more.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    return jobs


def record(folder: Path, experiment: str, model: str, run: str) -> dict:
    return json.loads((folder / f"results/{experiment}/records/{model}/{run}.json").read_text())


def test_nothing_is_learned_twice(folder: Path, jobs: Counter, planned) -> None:
    # MaskLLM with the other seed, tiles over the imported mask, no tile prior, and the smaller tile.
    assert jobs["learn"] == 4
    assert jobs["import_mask"] == 2
    # SparseGPT of the other seed, from which MaskLLM starts, and the initialization of the new tiles and ratio.
    assert jobs["prune"] == 2
    assert not {"train_model", "fetch_model"} & set(jobs)
    assert planned(folder, "more.yaml") == Counter(), "a second run does nothing"
    assert planned(folder) == Counter(), "nor does one of the experiment whose masks are used"


def test_a_mask_comes_back_as_it_went(folder: Path, jobs: Counter) -> None:
    run = "patch-joint_hybrid_0.45_t16{}_s0"
    there = record(folder, "tiny", "local", run.format(""))
    back = record(folder, "more", "local", run.format("_import=back"))
    reused = record(folder, "more", "local", run.format(""))
    for other in (back, reused):
        assert {name: metric["value"] for name, metric in other["metrics"].items()} == {
            name: metric["value"] for name, metric in there["metrics"].items()
        }
        assert other["density"] == there["density"]
    assert set(back["stages"]) == {"import", "evaluate"} and set(reused["stages"]) == {"learn", "evaluate"}
    assert back["run"]["variant"] == "import=back"


def test_tiles_are_learned_over_an_imported_mask(folder: Path, jobs: Counter) -> None:
    masks = load_masks(folder / "results/more/masks/trained/patch-tile_hybrid_0.25_t16_s0.safetensors")
    first_two = torch.tensor([True, True, False, False])
    for name, mask in masks.masks.items():
        groups = mask.reshape(mask.shape[0], -1, 4)
        assert (groups.all(dim=-1) | (groups == first_two).all(dim=-1)).all(), name
    assert record(folder, "more", "trained", "maskllm_2of4_0.5_import=by-hand_s0")["achieved_sparsity"] == 0.5


def test_tables_of_ablations_and_seeds(folder: Path, jobs: Counter) -> None:
    tables = {path.stem: path.read_text() for path in (folder / "results/more/tables").glob("*.md")}
    assert set(tables) == {"joint", "tile", "tasks", "density", "seeds", "speedup", "tile_prior", "tile_size"}
    assert "tile prior: none" in tables["tile_prior"] and "tile prior: SparseGPT" in tables["tile_prior"]
    assert "hybrid 4×4" in tables["tile_size"] and "hybrid 4×4" not in tables["joint"]
    assert "imported: back" in tables["joint"] and "imported: by-hand" in tables["tile"]
    assert "tile prior" not in tables["joint"]
    (seeds,) = [line for line in tables["seeds"].splitlines() if line.split()[1:2] == ["50"]]
    values = [
        record(folder, "more", "local", f"maskllm_2of4_0.5_s{seed}")["metrics"]["perplexity"]["value"]
        for seed in (0, 1)
    ]
    assert seeds.rpartition("±")[2].split()[0] == f"{np.std(values, ddof=1):.{1 if values[0] >= 100 else 2}f}"


def test_an_import_that_does_not_fit_stops_with_a_message(folder: Path, jobs: Counter, snakemake) -> None:
    np.savez_compressed(folder / "odd.npz", **{"a.weight.mask": np.packbits(np.ones(16, bool))})
    odd = MORE | {"experiment": "odd", "imports": {"odd": MORE["imports"]["by-hand"] | {"source": {}}}}
    odd["imports"]["odd"]["source"] = {"kind": "file", "path": "odd.npz"}
    (folder / "odd.yaml").write_text(yaml.safe_dump(odd | {"grid": [{"methods": ["import"]}]}))
    assert snakemake(folder, config="odd.yaml").returncode != 0
    (log,) = (folder / "results/odd/logs/import_mask/trained").glob("*.log")
    assert "a.weight.mask is no prunable layer" in log.read_text() and "Traceback" not in log.read_text()
