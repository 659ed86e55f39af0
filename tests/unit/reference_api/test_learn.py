"""Tests of each mode of learning, and of unsupported arguments."""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from patch.errors import InputError
from patch.fine_tune_mask import learn_mask
from patch.masks.nm import NM, obeys
from patch.models.loading import load_model, prunable_linears, weight_matrix
from patch.reference_api.api_settings import load_settings
from patch.reference_api.arguments import MaskArguments, read_arguments
from patch.reference_api.learning import learning_settings
from patch.utils import evaluate, get_llm

from .conftest import MASK_ARGS, save_model
from .test_quick_start import check_hybrid


@pytest.fixture
def learn(prepare, model_folder):
    def run(compressed=None, **changes):
        made, tokenizer = (None, None) if compressed else prepare()
        compressed = compressed or made
        tokenizer = tokenizer or get_llm(model_folder)[1].tokenizer
        return learn_mask(model_folder, compressed, tokenizer, MASK_ARGS | changes)

    return run


def patterns(model):
    return {name: weight_matrix(linear) != 0 for name, linear in prunable_linears(model).items()}


def test_tile_mode_keeps_the_one_shot_mask_in_sparse_tiles(learn, prepare, model_folder):
    compressed, _ = prepare()
    model, wrapper = learn(compressed, joint_optim=False, hard_tile=True)
    assert wrapper.model is model
    check_hybrid(model, model_folder)
    for name, mask in patterns(model).items():
        frozen = compressed.patch_priors.compressed.masks[name]
        tiles = mask.reshape(mask.shape[0] // 8, 8, -1, 8)
        dense = tiles.all(dim=3).all(dim=1)[:, None, :, None].expand_as(tiles).reshape(mask.shape)
        assert torch.equal(mask, frozen | dense)
    assert list(Path("patch-runs").glob("patch-tile-*"))


def test_maskllm_mode_is_two_four_everywhere(learn, prepare, model_folder):
    compressed, _ = prepare(target=0.5)
    model, _ = learn(compressed, mask_llm=True)
    originals = prunable_linears(load_model(model_folder))
    for name, mask in patterns(model).items():
        assert obeys(mask, NM(2, 4)).all() and mask.float().mean() == 0.5
        weight = weight_matrix(prunable_linears(model)[name])
        assert torch.equal(weight[mask], weight_matrix(originals[name])[mask])
    with pytest.warns(UserWarning, match="sparsity 0.5, not the target 0.45"):
        learn(prepare("other.pt")[0], mask_llm=True)


def test_layer_target_gives_each_layer_its_budget(learn):
    model, _ = learn(layer_target=True, hard_2_4=True, hard_tile=True)
    for mask in patterns(model).values():
        assert abs(1 - mask.float().mean().item() - 0.45) <= 32 / mask.numel()


def test_without_learning_the_compressed_model_comes_back(learn, prepare):
    compressed, _ = prepare()
    model, wrapper = learn(compressed, learnable_mask=False)
    assert model is compressed and wrapper.model is compressed


def test_the_same_call_gives_the_same_masks_from_any_kind_of_arguments(prepare, model_folder):
    compressed, tokenizer = prepare()
    first, _ = learn_mask(model_folder, compressed, tokenizer, MASK_ARGS)
    second, _ = learn_mask(str(model_folder), compressed, tokenizer, SimpleNamespace(**MASK_ARGS))
    assert all(torch.equal(mask, patterns(second)[name]) for name, mask in patterns(first).items())


def test_a_stopped_run_resumes(learn, monkeypatch, configure):
    from patch.learning import learn as module

    learning = {"steps": 6, "batch_size": 4, "warmup_steps": 1, "checkpoint_minutes": 1e-9}
    configure({"calibration": {"seqlen": 32}, "learning": learning})

    whole, _ = learn()
    (curve,) = Path("patch-runs").glob("*/curve.jsonl")
    expected = [json.loads(line)["loss"] for line in curve.read_text().splitlines()]
    seen, cross_entropy = [], module.cross_entropy

    def counted(*arguments):
        seen.append(None)
        if len(seen) == 7:  # two micro-batches a step
            raise KeyboardInterrupt
        return cross_entropy(*arguments)

    monkeypatch.setattr(module, "cross_entropy", counted)
    with pytest.raises(KeyboardInterrupt):
        learn()
    monkeypatch.setattr("patch.reference_api.datasets.pack_file", None)
    again, _ = learn()
    assert len(seen) == 7 + 2 * 3
    assert [json.loads(line)["loss"] for line in curve.read_text().splitlines()] == expected
    assert all(torch.equal(mask, patterns(again)[name]) for name, mask in patterns(whole).items())


def test_a_llama(text, tmp_path, load):
    from patch.utils import prepare_pruned_model

    folder = save_model("llama", text, tmp_path / "llama")
    model, tokenizer = load(folder, dtype=torch.bfloat16)
    arguments = {"prune_method": "sparsegpt", "sparsity_type": "2:4", "sparsity_ratio": 0.5, "nsamples": 8}
    compressed = prepare_pruned_model(model, tokenizer, "llama.pt", arguments, 8, 0.25)
    model, _ = learn_mask(folder, compressed, tokenizer, MASK_ARGS)
    assert model.dtype == torch.bfloat16
    zeros = sum(int((~mask).sum()) for mask in patterns(model).values())
    assert zeros / sum(mask.numel() for mask in patterns(model).values()) == pytest.approx(0.25, abs=0.01)


def test_every_argument_reaches_its_setting():
    given = {
        "joint_optim": True,
        "lr": 0.5,
        "local_bs": 4,
        "grad_checkpoint": True,
        "fine_tuning_sequence_length": 16,
        "sparse_reg": 1,
        "weight_reg": 2,
        "temp_schedule_2_4": [1, 2],
        "scaler_schedule_2_4": [3, 4],
        "hard_2_4": True,
        "prior_strength_2_4": 5,
        "temp_schedule_tile": [6, 7],
        "scaler_schedule_tile": [8, 9],
        "hard_tile": True,
        "prior_strength_tile": 10,
        "layer_target": True,
    }
    settings = learning_settings(read_arguments(MaskArguments, given, "mask_args"), load_settings())
    assert settings.model_dump(exclude_defaults=True) == {
        "steps": 6,
        "batch_size": 4,
        "warmup_steps": 1,
        "lr": 0.5,
        "micro_batch_size": 4,
        "gradient_checkpointing": True,
        "seqlen": 16,
        "sparsity_reg": 1,
        "weight_reg": 2,
        "pattern_temperature": (1, 2),
        "pattern_scale": (3, 4),
        "pattern_prior_strength": 5,
        "tile_temperature": (6, 7),
        "tile_scale": (8, 9),
        "tile_prior_strength": 10,
        "hard": True,
        "target": "block",
    }


@pytest.mark.parametrize("method", ["patch-joint", "patch-tile", "maskllm"])
def test_defaults_are_the_documented_ones(method, monkeypatch):
    from patch.learning.learning_settings import Learning

    monkeypatch.delenv("PATCH_API_CONFIG")
    given = {"joint_optim": method == "patch-joint", "mask_llm": method == "maskllm"}
    settings = learning_settings(read_arguments(MaskArguments, given, "mask_args"), load_settings())
    assert settings == Learning(weight_reg_decay=method == "maskllm", tile_temperature=(4.0, 0.05))
    assert (settings.steps, settings.batch_size, settings.seqlen) == (2000, 256, 4096)


def test_the_recipe_of_the_settings_file(configure):
    configure({"learning": {"recipe": "public-code", "max_grad_norm": 2.0}})
    given = {"mask_llm": True, "weight_reg": 3.0, "local_bs": 1}
    settings = learning_settings(read_arguments(MaskArguments, given, "mask_args"), load_settings())
    assert (settings.max_grad_norm, settings.weight_reg_form, settings.weight_decay) == (2.0, "norm_sum", 0.1)
    assert settings.weight_reg == 3.0, "an argument comes last"


@pytest.mark.parametrize(
    "given, hard",
    [
        ({"joint_optim": False, "hard_2_4": True}, False),
        ({"joint_optim": False, "hard_tile": True}, True),
        ({"mask_llm": True, "hard_2_4": True}, True),
        ({"mask_llm": True, "hard_tile": True}, False),
        ({"joint_optim": True, "hard_2_4": True, "hard_tile": True}, True),
    ],
)
def test_hard_flag(given, hard):
    assert learning_settings(read_arguments(MaskArguments, given, "mask_args"), load_settings()).hard is hard


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"learn_rate": 1}, "unknown key `mask_args.learn_rate`; did you mean `learnable_mask`?|known:"),
        ({"optimizer": "sgd"}, "`mask_args.optimizer` is 'sgd': .*'adamw_torch'"),
        ({"mask_tile_size": (128, 64)}, r"`mask_args.mask_tile_size`: \(128, 64\) is not square"),
        ({"mask_tile_size": 4}, "compressed_model was made.*`mask_tile_size` was 8 and is 4 now"),
        ({"target_sparsity_ratio": 0.25}, "`target_sparsity_ratio` was 0.45 and is 0.25 now"),
        ({"hard_tile": True}, "hard_2_4 is False and hard_tile is True"),
        ({"joint_optim": None}, "`mask_args.joint_optim` is None"),
        ({"local_bs": 3}, "`mask_args.local_bs` is 3, which does not divide the batch of 4"),
        ({"temp_schedule_tile": [1, 0]}, r"`mask_args.temp_schedule_tile.1` is 0: Input should be greater than 0"),
        ({"lr": -1}, "`mask_args.lr` is -1"),
        ({"fine_tuning_sequence_length": 129}, "is 129, longer than .* context of 128 tokens; use at most 128"),
    ],
)
def test_unsupported_arguments_are_refused(changes, words, learn):
    with pytest.raises(InputError, match=words):
        learn(**changes)


def test_wandb_gets_the_curve(prepare, model_folder, monkeypatch):
    begun, lines = [], []
    run = SimpleNamespace(log=lambda values, step: lines.append((step, values)), finish=lambda: None)
    library = ModuleType("wandb")
    library.__spec__ = ModuleSpec("wandb", None)
    library.Settings, library.init = SimpleNamespace, lambda **options: begun.append(options) or run
    monkeypatch.setitem(sys.modules, "wandb", library)
    learn_mask(model_folder, *prepare(), MASK_ARGS, wandb=True)
    (curve,) = Path("patch-runs").glob("patch-joint-*/curve.jsonl")
    losses = [json.loads(line)["loss"] for line in curve.read_text().splitlines()]
    assert [(step, values["loss"]) for step, values in lines] == list(enumerate(losses))
    (options,) = begun
    assert options["name"] == curve.parent.name and options["config"]["learning"]["steps"] == 6


def test_wandb_must_be_installed(prepare, model_folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="`wandb` is True, .*pip install wandb"):
        learn_mask(model_folder, None, None, MASK_ARGS, wandb=True)


def test_a_model_without_masks_is_refused(load, model_folder):
    model, tokenizer = load()
    with pytest.raises(InputError, match="use the result of prepare_pruned_model"):
        learn_mask(model_folder, model, tokenizer, MASK_ARGS)


def test_tiles_over_an_unstructured_mask_are_refused(learn, prepare, model_folder):
    compressed, _ = prepare(sparsity_type="unstructured")
    with pytest.raises(InputError, match="sparsity_type 'unstructured'; use '2:4'"):
        learn(compressed, joint_optim=False)
    check_hybrid(learn(compressed)[0], model_folder)


def test_another_model_of_the_same_shape_is_refused(prepare, text, tmp_path):
    compressed, tokenizer = prepare()
    other = save_model("opt", text, tmp_path / "other")
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        network.lm_head.weight[0, 0] += 1
    network.save_pretrained(other)
    with pytest.raises(InputError, match="not those that compressed_model was pruned from"):
        learn_mask(other, compressed, tokenizer, MASK_ARGS)


def test_a_wrapper_of_another_model_is_refused(learn, load):
    model, _ = learn()
    dense, tokenizer = load()
    with pytest.raises(InputError, match="`lm_eval_model` holds another model"):
        evaluate(dense, learn()[1], tokenizer)
    with pytest.raises(InputError, match="`eval_dataset` is 'c4', .*'wikitext2' or 'ptb'"):
        evaluate(model, None, tokenizer, eval_dataset="c4")
    with pytest.raises(InputError, match="`eval_batch_size` is 0"):
        evaluate(model, None, tokenizer, eval_batch_size=0)
