"""Exports of the finished experiment by the rule and by the command: weights, model cards, uploads and messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from patch.data.sequences import load_sequences
from patch.evaluation.perplexity import perplexity
from patch.inference import HybridLinear, unpack
from patch.masks.packed import apply_masks, load_masks
from patch.models.loading import is_linear, load_model, prunable_linears, weight_matrix
from patch.pipeline.config.load import load_experiment
from patch.pipeline.runs.plan import Plan

from ..hub.server import MEMBER, serve

ROOT = Path(__file__).parents[2]
# Loads a model from the hub and writes its logits.
LOADED = """
import sys, torch
import patch.inference
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("member/sparse")
torch.save(model(torch.arange(6)[None]).logits, sys.argv[1])
"""
UPDATED, LEARNED = "trained/sparsegpt_2of4_0.5_s0", "local/patch-joint_hybrid_0.45_t16_s0"
QUANTIZED, ADAPTED = "trained/maskllm_2of4_0.5_s0_absmax", "trained/patch-tile_hybrid_0.45_t16_s0_slim-lora"


@pytest.fixture(scope="module")
def packed(finished: Path, snakemake) -> dict[str, Path]:
    """Return the folders that the rule writes, by run."""
    folders = {name: f"results/tiny/export/{name}" for name in (UPDATED, LEARNED, QUANTIZED, ADAPTED)}
    run = snakemake(finished, *folders.values())
    assert run.returncode == 0, run.stdout + run.stderr
    assert not list((finished / "work").rglob("weights/**/*.safetensors")), "updated weights are temporary"
    return {name: finished / folder for name, folder in folders.items()}


def record(folder: Path, run: str) -> dict:
    return json.loads((folder / f"results/tiny/records/{run}.json").read_text())


def matrices(folder: Path | str) -> dict[str, torch.Tensor]:
    """Return the masked weight of each packed or dense linear layer of an exported model."""
    modules = dict(AutoModelForCausalLM.from_pretrained(folder).named_modules())
    packed = {name: unpack(layer.packed) for name, layer in modules.items() if isinstance(layer, HybridLinear)}
    return packed | {name: weight_matrix(layer).detach() for name, layer in modules.items() if is_linear(layer)}


@pytest.mark.parametrize("name", [UPDATED, LEARNED])
def test_the_rule_packs_the_masked_model(name: str, finished: Path, packed: dict[str, Path]) -> None:
    masks, found = load_masks(finished / f"results/tiny/masks/{name}.safetensors").masks, matrices(packed[name])
    (base,) = (finished / "work/models").glob(f"{name.partition('/')[0]}-*")
    model = load_model(base)
    apply_masks(model, load_masks(finished / f"results/tiny/masks/{name}.safetensors"))
    for layer, linear in prunable_linears(model).items():
        assert (found[layer][~masks[layer]] == 0).all()
        # SparseGPT updates the kept weights, learning does not.
        assert torch.equal(found[layer], weight_matrix(linear)) == (name == LEARNED)
    assert AutoTokenizer.from_pretrained(packed[name])("ba")["input_ids"]


@pytest.mark.parametrize("name", [UPDATED, LEARNED, QUANTIZED, ADAPTED])
def test_a_packed_folder_has_the_perplexity_of_its_run(
    name: str, finished: Path, packed: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    plan = Plan(load_experiment("tiny.yaml"))
    sequences = load_sequences(plan.store.perplexity_sequences(name.partition("/")[0]).path)
    model = AutoModelForCausalLM.from_pretrained(packed[name]).eval()
    expected = record(finished, name)["metrics"]["perplexity"]["value"]
    assert perplexity(model, sequences, 8).value == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("name", "words"), [(QUANTIZED, "4 bits (AbsMax)"), (ADAPTED, "4 bits (AbsMax + SLiM-LoRA)")])
def test_quantized_runs_are_packed_in_four_bits(name: str, words: str, packed: dict[str, Path]) -> None:
    layers = json.loads((packed[name] / "config.json").read_text())["quantization_config"]["layers"]
    assert all(layer["bits"] == 4 and ("rank" in layer) == (name == ADAPTED) for layer in layers.values())
    assert words in (packed[name] / "README.md").read_text()


def test_the_card_has_the_metrics_of_the_record(finished: Path, packed: dict[str, Path]) -> None:
    card, metrics = ModelCard.load(packed[LEARNED] / "README.md"), record(finished, LEARNED)["metrics"]
    found = {(one.dataset_type, one.metric_type): one for one in card.data.eval_results}
    assert len(found) == len(metrics) == 6
    perplexity, cloze = found["made", "perplexity"], found["cloze", "accuracy"]
    assert perplexity.dataset_split == "test" and perplexity.metric_value == metrics["perplexity"]["value"]
    assert perplexity.metric_args["stderr"] == metrics["perplexity"]["stderr"]
    assert cloze.metric_value == metrics["cloze"]["value"]
    assert found["mean", "accuracy"].dataset_name == "mean of 4 tasks"
    assert f"| Digest of the settings | {record(finished, LEARNED)['config_digest']} |" in card.text
    assert f"vllm serve results/tiny/export/{LEARNED}" in card.text and "| Base model | local |" in card.text


def test_the_command_writes_zeros_and_the_mask(finished: Path, packed: dict[str, Path], patch_command) -> None:
    run = patch_command(finished, "export", LEARNED.partition("/")[2], "sparse", "--form", "dense")
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith(": sparse\nto serve it: vllm serve sparse\n") and "no metrics" not in run.stdout
    model = AutoModelForCausalLM.from_pretrained(finished / "sparse")
    weight = model.get_parameter("transformer.h.0.mlp.c_fc.weight").detach()
    stored = np.load(finished / "sparse/mask.npz", allow_pickle=False)["transformer.h.0.mlp.c_fc.weight"]
    kept = np.unpackbits(stored, count=weight.numel()).reshape(weight.shape).astype(bool)
    assert (weight.numpy()[~kept] == 0).all() and (weight.numpy()[kept] != 0).mean() > 0.99
    dense, expected = matrices(finished / "sparse"), matrices(packed[LEARNED])
    assert all(torch.equal(dense[name], expected[name]) for name in expected)


def test_temporary_weights_are_made_again_by_the_command_in_the_message(
    finished: Path, snakemake: Callable, patch_command: Callable, packed: dict[str, Path]
) -> None:
    weights, codes = f"work/tiny/weights/{UPDATED}.safetensors", f"work/tiny/quantized/{QUANTIZED}.safetensors"
    run = patch_command(finished, "export", UPDATED, "updated")
    make = f"snakemake {weights} --configfile tiny.yaml"
    assert run.returncode == 2
    assert run.stderr == f"error: {UPDATED} needs {weights}; to make what is missing: {make}\n"
    made = snakemake(finished, weights, codes)
    assert made.returncode == 0, made.stdout + made.stderr
    exported = {
        "updated": patch_command(finished, "export", UPDATED, "updated"),
        "w4a16": patch_command(finished, "export", QUANTIZED, "w4a16", "--form", "compressed-tensors"),
    }
    for path in (weights, codes):
        (finished / path).unlink()
    for name, run in exported.items():
        assert run.returncode == 0, (name, run.stderr)
    for path in packed[UPDATED].glob("[!.]*"):
        same = (finished / "updated" / path.name).read_bytes() == path.read_bytes()
        assert same == (path.name != "README.md"), path.name  # the card names the folder
    config = json.loads((finished / "w4a16/config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["format"]) == ("compressed-tensors", "pack-quantized")


def test_a_pushed_run_is_loaded_from_the_hub(
    finished: Path, packed: dict[str, Path], patch_command: Callable, tmp_path: Path
) -> None:
    with serve(tmp_path / "repositories") as hub:
        variables = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": MEMBER,
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(ROOT),
        }
        variables |= {"HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1,localhost"}
        run = patch_command(finished, "export", LEARNED, "pushed", "--push", "member/sparse", **variables)
        assert run.returncode == 0 and run.stdout.endswith(f"pushed: {hub.endpoint}/member/sparse\n"), run.stderr
        assert MEMBER not in run.stdout + run.stderr
        command = [sys.executable, "-c", LOADED, str(tmp_path / "logits.pt")]
        # One thread, as in the tests: the dense products of some processors depend on their number.
        subprocess.run(command, env=os.environ | variables | {"OMP_NUM_THREADS": "1"}, check=True, timeout=120)
    card = ModelCard.load(finished / "pushed/README.md")
    assert "vllm serve member/sparse" in card.text and card.data.to_dict()["model-index"][0]["name"] == "sparse"
    expected = AutoModelForCausalLM.from_pretrained(packed[LEARNED])(torch.arange(6)[None]).logits
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), expected)
