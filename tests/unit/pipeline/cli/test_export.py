"""The command `export`: names of runs, exports of a mask file and a dense model, and messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from patch.data.tokenizer import train_tokenizer
from patch.errors import InputError
from patch.inference import HybridLinear
from patch.inference.packed import unpack
from patch.masks.nm import NM, nm_mask
from patch.masks.packed import MaskSet, apply_masks, save_masks
from patch.masks.published_masks import read_published
from patch.models.loading import prunable_linears, weight_matrix
from patch.pipeline.cli.export import find_run, main
from patch.pipeline.config.load import validate_experiment
from patch.pipeline.runs.plan import Plan
from patch.pruning.weights import save_weights

from ..conftest import Project


def two_four(model: torch.nn.Module) -> MaskSet:
    """Return 2:4 masks by magnitude."""
    linears = prunable_linears(model)
    return MaskSet({name: nm_mask(weight_matrix(m).float().abs(), NM(2, 4)) for name, m in linears.items()}, "2:4")


@pytest.fixture
def dense(tiny_model: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that writes a model, a tokenizer and masks, and returns the options of the command line."""
    monkeypatch.chdir(tmp_path)

    def make(dtype: torch.dtype = torch.float32, **header: object) -> list[str]:
        model = tiny_model("qwen2").to(dtype)
        model.save_pretrained("base")
        train_tokenizer(["in the beginning god created the heaven and the earth"] * 3, 280).save_pretrained("base")
        masks = two_four(model)
        masks.header = header
        save_masks("mask.safetensors", masks)
        return ["sparse", "--model", "base", "--mask", "mask.safetensors"]

    return make


@pytest.mark.parametrize(
    ("stored", "asked", "wanted"),
    [
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float32, None, torch.float32),
        (torch.float32, "bfloat16", torch.bfloat16),
    ],
)
@pytest.mark.parametrize("form", ["packed", "dense"])
def test_a_mask_file_and_a_model(
    stored: torch.dtype,
    asked: str | None,
    wanted: torch.dtype,
    form: str,
    dense: Callable,
    tiny_model: Callable,
    capsys: pytest.CaptureFixture,
) -> None:
    options = dense(dtype=stored, settings={"method": "wanda", "seed": 3}, digest="abc", cost={"seconds": 1.0})
    options += [*(["--dtype", asked] if asked else []), *(["--form", form] if form == "dense" else [])]
    assert main(options) == 0
    assert capsys.readouterr().out == f"{form}, sparsity 0.5000 in 14 layers: sparse\nto serve it: vllm serve sparse\n"
    model = tiny_model("qwen2").to(stored).to(wanted)
    masks = two_four(tiny_model("qwen2").to(stored))
    apply_masks(model, masks)
    loaded = AutoModelForCausalLM.from_pretrained("sparse")
    assert loaded.dtype == wanted and len(AutoTokenizer.from_pretrained("sparse")) > 256
    for name, linear in prunable_linears(model).items():
        layer = loaded.get_submodule(name)
        assert isinstance(layer, HybridLinear) == (form == "packed")
        found = unpack(layer.packed) if form == "packed" else weight_matrix(layer)
        assert torch.equal(found, weight_matrix(linear))
    assert Path("sparse/mask.npz").exists() == (form == "dense")
    if form == "dense":
        meta = read_published("sparse/mask.npz", model, "2:4").header["meta"]
        assert meta["settings"] == {"method": "wanda", "seed": 3} and meta["digest"] == "abc" and "cost" not in meta


def test_updated_weights_are_exported(dense: Callable, tiny_model: Callable) -> None:
    options, other = dense(), tiny_model("qwen2", seed=1)
    save_weights("w.safetensors", prunable_linears(other), "digest")
    assert main([*options, "--form", "dense", "--weights", "w.safetensors"]) == 0
    apply_masks(other, two_four(tiny_model("qwen2")))
    loaded = prunable_linears(AutoModelForCausalLM.from_pretrained("sparse"))
    for name, linear in prunable_linears(other).items():
        assert torch.equal(loaded[name].weight, linear.weight)


def test_the_card_of_files_has_what_they_hold(dense: Callable) -> None:
    options = dense(settings={"method": "sparsegpt"}, digest="abc")
    assert main(options) == 0
    card = ModelCard.load("sparse/README.md")
    assert card.data.license == "unknown" and card.data.base_model is None and card.data.eval_results is None
    assert "base, pruned by SparseGPT to 50 % zeros in the linear layers" in card.text
    for row in (
        "| Licence of the base model | unknown |",
        "| Method | SparseGPT |",
        "| Pattern | 2:4 |",
        "| Digest of the settings | abc |",
    ):
        assert row in card.text
    assert "was not evaluated" in card.text and 'from_pretrained("sparse"' in card.text


def test_dtype_of_a_folder_without_one_is_float32(dense: Callable) -> None:
    options, path = dense(dtype=torch.bfloat16), Path("base/config.json")
    config = json.loads(path.read_text())
    assert config.pop("dtype") == "bfloat16"
    # The second is the key in older folders.
    for out, added, wanted in (("one", {}, torch.float32), ("two", {"torch_dtype": "float16"}, torch.float16)):
        path.write_text(json.dumps(config | added))
        assert main([out, *options[1:], "--form", "dense"]) == 0
        assert AutoModelForCausalLM.from_pretrained(out).dtype == wanted


def test_mistakes_are_one_line_and_leave_nothing(
    dense: Callable, tiny_model: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = dense()
    out, model, mask = options[:1], options[1:3], options[3:]
    Path("bare").mkdir()
    tiny_model("qwen2").save_pretrained("bare")
    save_masks("other.safetensors", two_four(tiny_model("opt")))
    mistakes = [
        ([*out, "--model", "none", *mask], "none"),
        ([*out, "--model", ".", *mask], "."),
        ([*out, "--model", "bare", *mask], "bare: it has no tokenizer"),
        ([*out, *model, "--mask", "none"], "mask none: no such file"),
        ([*out, *model, "--mask", "other.safetensors"], "the masks are of another model"),
        (["base", *model, *mask], "base: it is not an empty folder, config.json is in it"),
        ([*options, "--weights", "none"], "weights none: no such file"),
        ([*options, "--weights", "mask.safetensors"], "expected 'patch-weights-1'"),
        ([*options, "--dtype", "float9"], "--dtype float9: give one of float32, bfloat16, float16"),
        ([*options, "--form", "compressed-tensors"], "weights that are not quantized have the forms packed and dense"),
        ([*out, *model], "give RUN and FOLDER, or FOLDER with --model and --mask"),
        (out, "give RUN and FOLDER, or FOLDER with --model and --mask"),
        (["qwen/run", *options], "RUN qwen/run has its own files; leave out --model, --mask"),
        ([*options, "--push", "a//b"], "nothing can be pushed to a//b: it is not the name of a repository"),
    ]
    capsys.readouterr()
    for arguments, message in mistakes:
        assert main(arguments) == 2, arguments
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("error: "), message
        assert message in printed.err and printed.err.count("\n") == 1
    assert not (tmp_path / "sparse").exists() and not list(tmp_path.glob(".*"))


def test_as_a_module(dense: Callable) -> None:
    run = [sys.executable, "-m", "patch", "export", *dense()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(run, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("packed, sparsity 0.5")
    again = subprocess.run(run, capture_output=True, text=True, env=environment)
    assert again.returncode == 2 and again.stderr.count("\n") == 1 and "not an empty folder" in again.stderr


def test_a_run_is_found_by_its_name_alone_if_one_model_has_it(raw_config: dict) -> None:
    raw_config["grid"].append(
        {"methods": ["magnitude"], "models": ["qwen"], "sparsity": [0.3], "pattern": "unstructured"}
    )
    plan = Plan(validate_experiment(raw_config))
    names = [f"{run.model}/{run.id}" for run in plan.exported_runs]
    assert not any("dense" in name for name in names)
    assert all(find_run(plan, name) == run for name, run in zip(names, plan.exported_runs, strict=True))
    assert find_run(plan, "magnitude_unstructured_0.3_s0").model == "qwen"
    shared = next(run.id for run in plan.exported_runs if sum(other.id == run.id for other in plan.exported_runs) > 1)
    with pytest.raises(InputError) as error:
        find_run(plan, shared)
    assert f"several models have a run `{shared}`; known:\n" in str(error.value)
    assert all(name in str(error.value) for name in names if name.endswith(f"/{shared}"))


def test_a_wrong_run_lists_those_that_exist_the_closest_first(raw_config: dict) -> None:
    raw_config["seeds"] = list(range(30))
    plan = Plan(validate_experiment(raw_config))
    target = next(run for run in plan.exported_runs if run.method == "patch-joint" and run.seed == 7)
    with pytest.raises(InputError) as error:
        find_run(plan, f"{target.model}/{target.id}x")
    first, *rest = str(error.value).partition("; known:\n  ")[2].split("\n  ")
    assert first == f"{target.model}/{target.id}"
    count = sum(run.model == target.model for run in plan.exported_runs)
    assert len(rest) == 20 and rest[-1] == f"and {count - 20} more"
    assert all(name.startswith(f"{target.model}/") for name in rest[:-1])


def test_missing_files_of_a_run_are_named_with_the_command_that_makes_them(
    project: Project, capsys: pytest.CaptureFixture
) -> None:
    project.write()
    plan = Plan(validate_experiment(project.raw))
    run = next(run for run in plan.exported_runs if run.method == "magnitude")
    model, mask = plan.inputs.export(run).values()
    Path(model).mkdir(parents=True)
    assert main([f"{run.model}/{run.id}", "out", "--configfile", "tiny.yaml"]) == 2
    expected = f"{run.model}/{run.id} needs {mask}; to make what is missing: snakemake {mask} --configfile tiny.yaml"
    assert capsys.readouterr().err == f"error: {expected}\n"
