"""Zero-shot accuracy with lm-eval, and the download of its built-in data sets."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patch.errors import InputError, suggest
from patch.evaluation.metric import Measurement, Metric
from patch.evaluation.tasks import task_names
from patch.files.io import write_json
from patch.hub.errors import hub_errors, library_errors

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from patch.evaluation.lm_eval_model import AlignedLM

DATA_VARIABLE = "PATCH_TASK_DATA"


class TaskEvaluator:
    """Evaluator of zero-shot `acc` for tasks and groups, one at a time, with log-likelihoods in fp32.

    Args:
        model: a transformers causal language model, on the device to use.
        tokenizer: its tokenizer.
        tasks: names of lm-eval or of the YAML files in ``include_path``.
        include_path: folder of further task files.
        data_dir: folder of the data that those tasks read.
        batch_size: requests per forward pass.
        limit: maximum number of questions per task.

    Raises:
        InputError: a task does not exist.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        tasks: list[str],
        include_path: Path | None,
        data_dir: Path | None,
        batch_size: int,
        limit: int | None = None,
    ) -> None:
        self._data_dir, self._limit = data_dir, limit
        with _quiet():
            self._manager = _task_manager(tasks, include_path)
        self._model = wrap_model(model, tokenizer, batch_size)

    def measure(self, task: str) -> Measurement:
        """Return accuracy, standard error, number of questions, chance level and per-question scores of one task.

        Raises:
            InputError: the data of the task is missing, or the task has no `acc`.
        """
        import lm_eval

        with _quiet(self._data_dir):
            # `simple_evaluate` also runs `pip list` and `git`, which takes a second per call.
            with library_errors(f"data of the task {task} cannot be read; fetch it first"):
                loaded = self._manager.load([task])
            for leaf in loaded["tasks"].values():
                leaf.set_config(key="num_fewshot", value=0)
            # One bootstrap iteration is the minimum for the closed-form error of a mean.
            results = lm_eval.evaluate(lm=self._model, task_dict=loaded, limit=self._limit, bootstrap_iters=1)
        return _metric(task, results)


def wrap_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> AlignedLM:
    """Return an lm-eval model that evaluates a transformers model, with log-likelihoods in fp32."""
    from patch.evaluation.lm_eval_model import AlignedLM

    with _quiet():
        return AlignedLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            softmax_dtype="float32",
            trust_remote_code=False,
        )


def mean_accuracy(metrics: Mapping[str, Metric]) -> Metric:
    """Return the unweighted mean over one or more tasks, with the standard error of a mean of independent values."""
    values = list(metrics.values())
    chances, stderrs = [metric.chance for metric in values], [metric.stderr for metric in values]
    return Metric(
        value=sum(metric.value for metric in values) / len(values),
        stderr=None if None in stderrs else math.sqrt(sum(stderr**2 for stderr in stderrs)) / len(values),
        samples=len(values),
        chance=None if None in chances else sum(chances) / len(values),
    )


def fetch_task_data(tasks: list[str], include_path: Path | None, out: Path) -> None:
    """Download the data of lm-eval's built-in tasks into `HF_DATASETS_CACHE`, and write a JSON receipt to ``out``.

    Tasks of ``include_path`` are skipped: their data is made from text.

    Raises:
        InputError: a task does not exist, or its data cannot be fetched.
    """
    own = task_names(include_path) if include_path else []
    built_in = [name for name in tasks if name not in own]
    with _quiet(), hub_errors(f"data of the tasks {', '.join(built_in)} cannot be fetched"):
        loaded = _task_manager(built_in, include_path).load(built_in)["tasks"] if built_in else {}
    receipt = {
        name: {"dataset": task.DATASET_PATH, "name": task.DATASET_NAME, "questions": len(task.eval_docs)}
        for name, task in loaded.items()
    }
    write_json(out, receipt)


def _task_manager(tasks: list[str], include_path: Path | None) -> TaskManager:
    """Return lm-eval's index of tasks after a check of ``tasks``."""
    from lm_eval.tasks import TaskManager

    own = task_names(include_path) if include_path else []
    # The scan of lm-eval's own 14,000 task files takes seconds.
    manager = TaskManager(
        include_path=str(include_path) if include_path else None, include_defaults=not set(tasks) <= set(own)
    )
    for name in tasks:
        _check_name(name, manager, own)
    return manager


def _check_name(name: str, manager: TaskManager, own: list[str]) -> None:
    if name in manager.all_tags:
        members = ", ".join(sorted(manager.task_index[name].tags))
        raise InputError(
            f"`evaluation.tasks` names {name!r}, a tag of lm-eval without a score; name its tasks: {members}"
        )
    if name not in manager.all_tasks:
        known = suggest(name, own) if own else "see `lm_eval ls tasks`"
        raise InputError(f"`evaluation.tasks` names {name!r}, which is not a task of lm-eval; {known}")


def _metric(name: str, results: dict[str, Any]) -> Measurement:
    scores = results["results"][name]
    if "acc,none" not in scores:
        raise InputError(f"`evaluation.tasks` names {name!r}, which is not measured by `acc`")
    stderr = scores["acc_stderr,none"]
    # Sorted, so that two evaluations can be compared question by question.
    samples = [
        sample
        for leaf in sorted(set(_leaves(name, results)))
        for sample in sorted(results["samples"][leaf], key=lambda sample: sample["doc_id"])
        if sample["filter"] == "none"
    ]
    return Measurement(
        value=float(scores["acc,none"]),
        stderr=float(stderr) if isinstance(stderr, float) and math.isfinite(stderr) else None,
        samples=len(samples),
        # A question has one request per choice.
        chance=sum(1 / len(sample["arguments"]) for sample in samples) / len(samples),
        values=_values(samples, float(scores["acc,none"])),
    )


def _values(samples: list[dict[str, Any]], accuracy: float) -> tuple[float, ...]:
    """Return the score of each question; empty if their mean is not the accuracy, as for a mean over subtasks."""
    if not all(isinstance(sample.get("acc"), Real) for sample in samples):
        return ()
    values = tuple(float(sample["acc"]) for sample in samples)
    return values if math.isclose(math.fsum(values) / len(values), accuracy, abs_tol=1e-9) else ()


def _leaves(name: str, results: dict[str, Any]) -> list[str]:
    """Return the tasks of a group, or the task itself."""
    members = results["group_subtasks"].get(name) or []
    return [leaf for member in members for leaf in _leaves(member, results)] or [name]


@contextmanager
def _quiet(data_dir: Path | None = None) -> Iterator[None]:
    """Suppress lm-eval's warnings within the block, and set the variable of the tasks' data unless it is None.

    lm-eval warns about every normally created task and model.
    """
    logger = logging.getLogger("lm_eval")
    level, data = logger.level, os.environ.get(DATA_VARIABLE)
    logger.setLevel(logging.ERROR)
    if data_dir is not None:
        os.environ[DATA_VARIABLE] = str(data_dir)
    try:
        yield
    finally:
        logger.setLevel(level)
        os.environ.pop(DATA_VARIABLE, None)
        if data is not None:
            os.environ[DATA_VARIABLE] = data
