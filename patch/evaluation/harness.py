"""Accuracy on tasks with lm-eval, and the download of its built-in data sets."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patch.errors import InputError
from patch.evaluation.metric import Measurement, Metric
from patch.evaluation.task_index import (
    EXAMPLE_SPLITS,
    check_task_names,
    no_examples,
    not_greedy,
    not_measured,
    sampling,
)
from patch.evaluation.tasks import task_names
from patch.files.io import write_json
from patch.hub.errors import hub_errors, library_errors

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from patch.evaluation.lm_eval_model import AlignedLM

DATA_VARIABLE = "PATCH_TASK_DATA"
# The default of lm-eval, so that both draw the same examples.
FEWSHOT_SEED = 1234


class TaskEvaluator:
    """Evaluator of tasks and groups, one at a time: log-likelihoods in fp32, and answers by greedy decoding.

    Args:
        model: a transformers causal language model, on the device to use.
        tokenizer: its tokenizer.
        tasks: names of lm-eval or of the YAML files in ``include_path``.
        include_path: folder of further task files.
        data_dir: folder of the data that those tasks read.
        batch_size: requests per forward pass.
        limit: maximum number of questions per task.
        acc_norm: True to measure `acc_norm` too.

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
        acc_norm: bool = False,
    ) -> None:
        self._data_dir, self._limit, self._acc_norm = data_dir, limit, acc_norm
        with _quiet():
            self._manager = _task_manager(tasks, include_path)
        self._model = wrap_model(model, tokenizer, batch_size)

    def measure(self, task: str, fewshot: int = 0) -> dict[str, Measurement]:
        """Return value, standard error, number of questions, chance level and per-question scores of one task.

        Args:
            task: name of the task or group.
            fewshot: number of solved examples before each question.

        Returns:
            The task's `acc` by its name, and `acc_norm`, if asked for, as `<task>/acc_norm`. A task without `acc` has
            one `exact_match` for each filter of the answers instead, as `<task>/<filter>`, or `<task>/exact_match`
            without filters.

        Raises:
            InputError: the data or the few-shot examples of the task are missing, the task has neither metric or
                samples its answers, or the model's context is too short for the answers.
        """
        import lm_eval

        with _quiet(self._data_dir):
            # `simple_evaluate` also runs `pip list` and `git`, which takes a second per call.
            with library_errors(f"data of the task {task} cannot be read; fetch it first"):
                loaded = self._manager.load([task])
            for leaf in loaded["tasks"].values():
                _prepare(task, leaf, fewshot)
            # One bootstrap iteration is the minimum for the closed-form error of a mean.
            results = lm_eval.evaluate(lm=self._model, task_dict=loaded, limit=self._limit, bootstrap_iters=1)
        return _measurements(task, results, fewshot, self._acc_norm)


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


def fetch_task_data(
    tasks: list[str], include_path: Path | None, out: Path, fewshot: Mapping[str, int] | None = None
) -> None:
    """Download the data of lm-eval's built-in tasks into `HF_DATASETS_CACHE`, and write a JSON receipt to ``out``.

    Tasks of ``include_path`` are skipped: their data is made from text. ``fewshot`` has the number of few-shot examples
    of the tasks that have some, which the data must contain.

    Raises:
        InputError: a task does not exist, its data cannot be fetched, or it has too few examples.
    """
    own = task_names(include_path) if include_path else []
    built_in = [name for name in tasks if name not in own]
    receipt = {}
    with _quiet():
        manager = _task_manager(built_in, include_path) if built_in else None
        for name in built_in:
            with hub_errors(f"data of the task {name} cannot be fetched"):
                loaded = manager.load([name])["tasks"]
            for leaf, task in loaded.items():
                _prepare(name, task, (fewshot or {}).get(name, 0))
                questions = len(task.eval_docs)
                receipt[leaf] = {"dataset": task.DATASET_PATH, "name": task.DATASET_NAME, "questions": questions}
    write_json(out, receipt)


def _task_manager(tasks: list[str], include_path: Path | None) -> TaskManager:
    """Return lm-eval's index of tasks after a check of ``tasks``."""
    from lm_eval.tasks import TaskManager

    check_task_names(tasks, include_path)
    own = task_names(include_path) if include_path else []
    # The scan of lm-eval's own 14,000 task files takes seconds.
    return TaskManager(
        include_path=str(include_path) if include_path else None, include_defaults=not set(tasks) <= set(own)
    )


def _prepare(name: str, task: Task, fewshot: int) -> None:
    """Set the few-shot examples of a task, which belongs to the task or group ``name``.

    Raises:
        InputError: the task samples its answers, or has too few examples.
    """
    if problem := sampling(task.get_config("generation_kwargs")):
        raise InputError(not_greedy(name, problem))
    task.set_config(key="num_fewshot", value=fewshot)
    # Without a seed, lm-eval draws other examples in each process.
    task.set_fewshot_seed(FEWSHOT_SEED)
    # Tasks with Python classes have no sampler, and use their own examples.
    if fewshot and hasattr(task, "sampler"):
        config, split = task.fewshot_cfg, task.fewshot_cfg.split
        if not (config.samples or any(task.get_config(key) for key in EXAMPLE_SPLITS) or split):
            raise InputError(no_examples(name, fewshot))
        # A question that is one of the examples is left out of its own prompt.
        found = len(task.sampler.df) - (split == task.get_config("test_split"))
        if found < fewshot:
            raise InputError(f"`evaluation.num_fewshot` is {fewshot} for {name!r}, whose data has {found} examples")


def _measurements(name: str, results: dict[str, Any], fewshot: int, acc_norm: bool) -> dict[str, Measurement]:
    scores = results["results"][name]
    if "acc,none" in scores:
        wanted = {name: "acc,none"}
        if acc_norm and "acc_norm,none" in scores:
            wanted[f"{name}/acc_norm"] = "acc_norm,none"
    else:
        wanted = {f"{name}/{_label(key)}": key for key in scores if key.startswith("exact_match,")}
    if not wanted:
        raise InputError(not_measured(name))
    return {title: _measurement(name, key, results, fewshot) for title, key in wanted.items()}


def _label(key: str) -> str:
    """Return the label of a score `<metric>,<filter>`: its filter, or its metric if the answers are not filtered."""
    metric, _, filtered = key.partition(",")
    return metric if filtered == "none" else filtered


def _measurement(name: str, key: str, results: dict[str, Any], fewshot: int) -> Measurement:
    metric, _, filtered = key.partition(",")
    value = float(results["results"][name][key])
    stderr = results["results"][name][f"{metric}_stderr,{filtered}"]
    # Sorted, so that two evaluations can be compared question by question.
    samples = [
        sample
        for leaf in sorted(set(_leaves(name, results)))
        for sample in sorted(results["samples"][leaf], key=lambda sample: sample["doc_id"])
        if sample["filter"] == filtered
    ]
    # A question has one request per choice. With a single request there are no choices to guess from.
    choices = [len(sample["arguments"]) for sample in samples]
    return Measurement(
        value=value,
        stderr=float(stderr) if isinstance(stderr, float) and math.isfinite(stderr) else None,
        samples=len(samples),
        chance=sum(1 / number for number in choices) / len(samples) if min(choices) > 1 else None,
        fewshot=fewshot,
        values=_values([sample.get(metric) for sample in samples], value),
    )


def _values(scores: list[Any], mean: float) -> tuple[float, ...]:
    """Return the score of each question; empty if their mean is not ``mean``, as for a mean over subtasks."""
    if not all(isinstance(score, Real) for score in scores):
        return ()
    values = tuple(float(score) for score in scores)
    return values if math.isclose(math.fsum(values) / len(values), mean, abs_tol=1e-9) else ()


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
