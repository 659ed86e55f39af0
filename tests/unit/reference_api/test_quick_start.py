"""Tests of the public code's quick start on a small model and local text."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from patch.fine_tune_mask import learn_mask
from patch.masks.nm import NM, obeys
from patch.masks.packed import load_masks
from patch.masks.tile import sum_tiles
from patch.models.loading import load_model, prunable_linears, weight_matrix
from patch.utils import evaluate, get_llm, prepare_pruned_model

TILE, TARGET = 8, 0.45


def test_quick_start(model_folder, tmp_path):
    model_name = str(model_folder)
    model, lm_eval_model = get_llm(model_name=model_name, local_files_only=False, hf_token=None)
    tokenizer = AutoTokenizer.from_pretrained(model_name)

    prune_args = {
        "prune_method": "wanda",
        "sparsity_type": "2:4",
        "sparsity_ratio": 0.5,
        "nsamples": 128,
        "maskllm_checkpoint": None,
        "optimizer_FT_pruning": "adamw_torch",
        "calibration_dataset": "c4",
        "eval_dataset": "wikitext2",
        "shift_zero_metrics": False,
        "fine_tune": False,
    }
    compressed_model = prepare_pruned_model(
        model=model,
        tokenizer=tokenizer,
        checkpoint_name="checkpoints/opt.pt",
        prune_args=prune_args,
        mask_tile_size=TILE,
        target_sparsity_ratio=TARGET,
    )

    mask_args = {
        "learnable_mask": True,
        "mask_tile_size": TILE,
        "grad_checkpoint": True,
        "local_bs": 1,
        "optimizer": "adamw_torch",
        "fine_tuning_sequence_length": 32,
        "target_sparsity_ratio": TARGET,
        "lr": 1e-3,
        "sparse_reg": 7,
        "weight_reg": 10.0,
        "temp_schedule_2_4": [4.0, 0.05],
        "scaler_schedule_2_4": [100.0, 500.0],
        "hard_2_4": False,
        "prior_strength_2_4": 3.0,
        "joint_optim": True,
        "temp_schedule_tile": [4.0, 0.05],
        "scaler_schedule_tile": [25.0, 350.0],
        "hard_tile": False,
        "prior_strength_tile": 3.0,
        "mask_llm": False,
        "layer_target": False,
    }
    model, lm_eval_model = learn_mask(
        model_name=model_name,
        compressed_model=compressed_model,
        tokenizer=tokenizer,
        mask_args=mask_args,
        local_files_only=False,
        hf_token=None,
        wandb=False,
    )

    ppl, results = evaluate(
        model,
        lm_eval_model,
        tokenizer,
        evaluate_perplexity=True,
        eval_dataset="wikitext2",
        eval_batch_size=1,
        test_lmharness=True,
    )

    # Results of the run.
    assert 1 < ppl < 1e6
    assert set(results) == {"cloze", "word_order", "average"}
    assert results["average"] == pytest.approx((results["cloze"] + results["word_order"]) / 2)
    assert all(0 <= accuracy <= 1 for accuracy in results.values())
    check_hybrid(model, model_folder)
    (run,) = Path("patch-runs").glob("patch-joint-*")
    assert sorted(file.name for file in run.iterdir()) == ["curve.jsonl", "mask.safetensors"]
    curve = [json.loads(line) for line in (run / "curve.jsonl").read_text().splitlines()]
    assert len(curve) == 6 and curve[0]["tile_temperature"] == 4.0 and curve[0]["target_density"] == 0.55
    stored = load_masks(run / "mask.safetensors")
    assert all(torch.equal(weight_matrix(m) != 0, stored.masks[name]) for name, m in prunable_linears(model).items())


def check_hybrid(model, model_folder, tile=TILE, target=TARGET):
    """Check that the budget is met to the tile, sparse tiles are 2:4, and kept weights are unchanged."""
    originals, kept, size = prunable_linears(load_model(model_folder)), 0, 0
    for name, linear in prunable_linears(model).items():
        weight, original = weight_matrix(linear), weight_matrix(originals[name])
        mask = weight != 0
        assert torch.equal(weight[mask], original[mask])
        dense = sum_tiles(mask.float(), tile) == tile * tile
        good = obeys(mask, NM(2, 4)).reshape(mask.shape[0], -1, tile // 4)
        rows = dense.repeat_interleave(tile, 0)
        assert (good.all(dim=-1) | rows).all()
        kept, size = kept + int(mask.sum()), size + mask.numel()
    assert abs(1 - kept / size - target) <= tile * tile / 2 / size
