"""Tests of the defaults, in tables from the public code's README.md and arguments.py."""

import inspect

import pytest

from patch.fine_tune_mask import learn_mask
from patch.reference_api.arguments import MaskArguments, PruneArguments
from patch.utils import evaluate, get_llm, prepare_pruned_model

PRUNE_DEFAULTS = {
    "nsamples": 128,
    "maskllm_checkpoint": None,
    "optimizer_FT_pruning": "adamw_torch",
    "calibration_dataset": "c4",
    "eval_dataset": "wikitext2",
    "shift_zero_metrics": False,
    "fine_tune": False,
}
MASK_DEFAULTS = {
    "grad_checkpoint": False,
    "local_bs": 1,
    "optimizer": "adamw_torch",
    "fine_tuning_sequence_length": 4096,
    "lr": 1e-3,
    "sparse_reg": 7.0,
    "weight_reg": 10.0,
    "temp_schedule_2_4": (4.0, 0.05),
    "scaler_schedule_2_4": (100.0, 500.0),
    "hard_2_4": False,
    "prior_strength_2_4": 3.0,
    "joint_optim": False,
    "temp_schedule_tile": (4.0, 0.05),
    "scaler_schedule_tile": (25.0, 350.0),
    "hard_tile": False,
    "prior_strength_tile": 3.0,
    "mask_llm": False,
    "layer_target": False,
}
# The public functions have no defaults for them. Those of its command line would prune or learn nothing.
NO_DEFAULT = {"prune_method", "sparsity_type", "sparsity_ratio"}
FROM_THE_COMPRESSED_MODEL = {"mask_tile_size": None, "target_sparsity_ratio": None}


def test_defaults_of_prune_args():
    fields = PruneArguments.model_fields
    assert {name for name, field in fields.items() if field.is_required()} == NO_DEFAULT
    assert {name: field.default for name, field in fields.items() if not field.is_required()} == PRUNE_DEFAULTS


def test_defaults_of_mask_args():
    assert MaskArguments().model_dump() == MASK_DEFAULTS | FROM_THE_COMPRESSED_MODEL | {"learnable_mask": True}


@pytest.mark.parametrize(
    "function, defaults",
    [
        (get_llm, {"local_files_only": False, "hf_token": None}),
        (prepare_pruned_model, {"seed": 0}),
        (learn_mask, {"local_files_only": False, "hf_token": None, "wandb": False}),
        (
            evaluate,
            {
                "evaluate_perplexity": True,
                "eval_dataset": "wikitext2",
                "eval_batch_size": 1,
                "test_lmharness": True,
            },
        ),
    ],
)
def test_defaults_of_the_functions(function, defaults):
    found = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    assert {name: found[name] for name in defaults} == defaults
    assert all(default is inspect.Parameter.empty for name, default in found.items() if name not in EXTRA | {*defaults})


# Arguments of this project alone.
EXTRA = {"dtype", "device"}
