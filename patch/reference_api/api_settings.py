"""Settings without an argument in the public functions, from the YAML file that `PATCH_API_CONFIG` names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from patch.data.corpus_settings import Corpus, HubSource
from patch.errors import InputError, suggest
from patch.files.plain import read_yaml
from patch.learning.finetuning_settings import Finetuning
from patch.learning.learning_settings import RECIPES, Learning
from patch.reference_api.arguments import checked
from patch.settings import Section

VARIABLE = "PATCH_API_CONFIG"
# The sources of `config/paper.yaml`, plus the train split of WikiText-2 and the Penn Treebank.
HUB = {
    "c4": HubSource(
        repo="allenai/c4",
        revision="1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
        data_files="en/c4-train.00000-of-01024.json.gz",
        splits={"calibration": "train"},
    ),
    "wikitext2": HubSource(
        repo="Salesforce/wikitext",
        revision="b08601e04326c79dfdd32d625aee71d232d685c3",
        name="wikitext-2-raw-v1",
        splits={"calibration": "train", "test": "test"},
    ),
    "slimpajama": HubSource(
        repo="DKYoon/SlimPajama-6B",
        revision="b5f90f419b7489cdba26fdbc8c022fcb5562f968",
        splits={"train": "train"},
    ),
    # Its main branch holds a loading script, which `datasets` no longer runs; this branch holds the output as Parquet.
    "ptb": HubSource(
        repo="ptb-text-only/ptb_text_only",
        revision="refs/convert/parquet",
        data_files="penn_treebank/test/0000.parquet",
        splits={"test": "train"},  # `datasets` calls the split of named files `train`
        field="sentence",
    ),
}

PAPER_TASKS = ("mmlu", "piqa", "arc_easy", "arc_challenge", "winogrande", "openbookqa", "race", "hellaswag")

# Key of a learning run -> the argument that sets it.
SET_BY = {
    "lr": "lr",
    "seqlen": "fine_tuning_sequence_length",
    "micro_batch_size": "local_bs",
    "gradient_checkpointing": "grad_checkpoint",
    "sparsity_reg": "sparse_reg",
    "weight_reg": "weight_reg",
    "pattern_temperature": "temp_schedule_2_4",
    "pattern_scale": "scaler_schedule_2_4",
    "pattern_prior_strength": "prior_strength_2_4",
    "tile_temperature": "temp_schedule_tile",
    "tile_scale": "scaler_schedule_tile",
    "tile_prior_strength": "prior_strength_tile",
    "hard": "hard_2_4",
    "target": "layer_target",
}
# `prepare_pruned_model` makes the mask initialization, and `corpora` names the text.
_NOT_HERE = {"use", "pattern_prior", "tile_prior", "frozen_mask", "prox_strength"}
LEARNING_KEYS = sorted(Learning.model_fields.keys() - SET_BY.keys() - _NOT_HERE)
# `fine_tune` trains all kept weights on C4, as the public code does.
FINETUNING_KEYS = sorted(Finetuning.model_fields.keys() - {"use", "lora_rank", "lora_alpha"})
PROXSPARSE_KEYS = sorted({*LEARNING_KEYS, "lr", "micro_batch_size", "gradient_checkpointing", "prox_strength"})


class Calibration(Section):
    """Calibration settings of one-shot methods."""

    seqlen: int | None = Field(
        None, ge=4, description="Length of a sequence in tokens; by default 2048 or the model's context."
    )


class Evaluation(Section):
    """Settings of `patch.utils.evaluate`."""

    tasks: list[str] = Field(list(PAPER_TASKS), min_length=1, description="lm-eval tasks, by default the paper's.")
    include_path: str | None = Field(None, description="Folder of lm-eval YAML files whose data is made from text.")
    task_data: str = Field("wikitext2", description="Corpus whose test split the data of these tasks is made from.")
    task_samples: int = Field(200, ge=10, description="Questions per task made from text.")
    limit: int | None = Field(None, ge=1, description="Maximum number of questions per task; by default all.")
    perplexity_seqlen: int | None = Field(
        None, ge=4, description="Length of a sequence in tokens; by default 4096 or the model's context."
    )


class ApiSettings(Section):
    """Schema of a settings file."""

    corpora: dict[str, Corpus] = Field(
        default_factory=dict, description="Corpora that replace those of the hub, by name."
    )
    learning: dict[str, Any] = Field(default_factory=dict, description="Keys of a learning run, and `recipe`.")
    proxsparse: dict[str, Any] = Field(default_factory=dict, description="Keys of a ProxSparse run.")
    finetuning: dict[str, Any] = Field(default_factory=dict, description="Keys of fine-tuning after pruning.")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="Settings of the evaluation.")
    calibration: Calibration = Field(default_factory=Calibration, description="Settings of the calibration.")
    folder: str = Field("patch-runs", description="Where checkpoints, curves, learned masks and corpora go.")

    @field_validator("learning")
    @classmethod
    def _no_argument_for_it(cls, values: dict[str, Any]) -> dict[str, Any]:
        for key in values:
            if key in SET_BY:
                raise ValueError(f"sets {key!r}, which is what `mask_args` calls {SET_BY[key]!r}; set it there")
        recipe = values.get("recipe", "paper")
        if recipe not in RECIPES:
            raise ValueError(f"recipe is {recipe!r}; {suggest(str(recipe), list(RECIPES))}")
        return _known(values, [*LEARNING_KEYS, "recipe"])

    @field_validator("proxsparse")
    @classmethod
    def _of_proxsparse(cls, values: dict[str, Any]) -> dict[str, Any]:
        return _known(values, PROXSPARSE_KEYS)

    @field_validator("finetuning")
    @classmethod
    def _of_finetuning(cls, values: dict[str, Any]) -> dict[str, Any]:
        return _known(values, FINETUNING_KEYS)


def _known(values: dict[str, Any], known: list[str]) -> dict[str, Any]:
    for key in values:
        if key not in known:
            raise ValueError(f"unknown key `{key}`; {suggest(key, known)}")
    return values


def _check_names(settings: ApiSettings) -> None:
    """Refuse unused corpora in the settings file, and an unknown corpus for task data.

    Raises:
        InputError: a corpus is unused or unknown; the message lists the known ones.
    """
    known = [*HUB, *settings.corpora]
    if settings.evaluation.task_data not in known:
        name = settings.evaluation.task_data
        raise InputError(f"{VARIABLE}: `evaluation.task_data` is {name!r}; {suggest(name, sorted(set(known)))}")
    for name in settings.corpora:
        if name not in HUB and name != settings.evaluation.task_data:
            raise InputError(f"{VARIABLE}: nothing reads the corpus `corpora.{name}`; {suggest(name, list(HUB))}")


def load_settings() -> ApiSettings:
    """Return the settings of this process: the file that `PATCH_API_CONFIG` names, or the defaults.

    Raises:
        InputError: the file is missing, is not YAML, or holds an invalid value.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return ApiSettings()
    settings = checked(ApiSettings, read_yaml(Path(path)), "", VARIABLE)
    _check_names(settings)
    return settings
