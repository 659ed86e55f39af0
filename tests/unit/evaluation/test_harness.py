"""Tests of lm-eval against slowly computed log-likelihoods on a tiny model, offline."""

import json
import math
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from patch.errors import InputError
from patch.evaluation import harness
from patch.evaluation.harness import TaskEvaluator, fetch_task_data, mean_accuracy
from patch.evaluation.metric import Measurement, Metric

INCLUDE = Path(__file__).parents[3] / "workflow" / "tasks"
TASKS = ["word_order", "continuation", "next_word", "cloze"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, words) -> Path:
    folder, rng = tmp_path_factory.mktemp("data"), random.Random(0)

    def some(count: int) -> str:
        return " ".join(rng.choice(words) for _ in range(count))

    for task in TASKS:
        number = 2 if task == "word_order" else 4
        rows = [
            {
                "query": some(rng.randint(1, 9)),
                "choices": [some(3) for _ in range(number)],
                "gold": rng.randrange(number),
            }
            for _ in range(40)
        ]
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def evaluate_tasks(model, tokenizer, tasks, *options, **more) -> dict[str, Measurement]:
    evaluator = TaskEvaluator(model, tokenizer, tasks, *options, **more)
    return {title: metric for name in tasks for title, metric in evaluator.measure(name).items()}


@torch.no_grad()
def slow_accuracy(model, tokenizer, file: Path) -> list[bool]:
    right = []
    for question in map(json.loads, file.read_text().splitlines()):
        scores = []
        for choice in question["choices"]:
            start = len(tokenizer(question["query"])["input_ids"])
            ids = tokenizer(f"{question['query']} {choice}")["input_ids"]
            log_probs = model.double()(torch.tensor([ids])).logits[0].log_softmax(-1)
            scores.append(sum(log_probs[place - 1, ids[place]].item() for place in range(start, len(ids))))
        right.append(scores.index(max(scores)) == question["gold"])
    model.float()
    return right


def test_agrees_with_slow_log_likelihoods(model, tokenizer, data_dir):
    metrics = evaluate_tasks(model, tokenizer, TASKS, INCLUDE, data_dir, batch_size=7)
    assert list(metrics) == TASKS
    for task, metric in metrics.items():
        right = slow_accuracy(model, tokenizer, data_dir / f"{task}.jsonl")
        accuracy = sum(right) / len(right)
        assert metric.value == pytest.approx(accuracy)
        assert metric.stderr == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / (len(right) - 1)))
        assert metric.values == tuple(map(float, right))
        assert metric.samples == 40
        assert metric.chance == pytest.approx(0.5 if task == "word_order" else 0.25)
    assert os.environ.get(harness.DATA_VARIABLE) is None


def test_one_task_at_a_time_gives_what_all_at_once_do(model, tokenizer, data_dir, monkeypatch):
    import lm_eval

    from patch.evaluation.lm_eval_model import AlignedLM

    monkeypatch.setenv(harness.DATA_VARIABLE, str(data_dir))
    results = lm_eval.simple_evaluate(
        model=AlignedLM(pretrained=model, tokenizer=tokenizer, batch_size=7, softmax_dtype="float32"),
        tasks=TASKS,
        num_fewshot=0,
        bootstrap_iters=1,
        task_manager=harness._task_manager(TASKS, INCLUDE),
    )
    assert evaluate_tasks(model, tokenizer, TASKS, INCLUDE, data_dir, batch_size=7) == {
        name: harness._measurements(name, results, 0, False)[name] for name in TASKS
    }


@torch.no_grad()
def test_one_text_with_every_split_and_every_last_word(model, tokenizer, words):
    from lm_eval.api.instance import Instance

    from patch.evaluation.lm_eval_model import AlignedLM

    pairs = [
        (" ".join(text[:place]), " " + " ".join(text[place:]))
        for last in words[:3]
        for text in [[*words[3:9], last]]
        for place in range(1, len(text))
    ]
    lm = AlignedLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    found = lm.loglikelihood([Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)])
    for (context, continuation), (score, _) in zip(pairs, found, strict=True):
        start, ids = len(tokenizer(context)["input_ids"]), tokenizer(context + continuation)["input_ids"]
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = sum(log_probs[place - 1, ids[place]].item() for place in range(start, len(ids)))
        assert score == pytest.approx(wanted, abs=1e-3)


def test_limit_and_a_single_question(model, tokenizer, data_dir):
    assert evaluate_tasks(model, tokenizer, ["cloze"], INCLUDE, data_dir, 8, limit=5)["cloze"].samples == 5
    assert evaluate_tasks(model, tokenizer, ["cloze"], INCLUDE, data_dir, 8, limit=1)["cloze"].stderr is None


def test_a_group_has_the_value_of_its_members(model, tokenizer, data_dir, tmp_path):
    for file in INCLUDE.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "words.yaml").write_text(
        "group: words\ntask: [word_order, next_word]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    group = evaluate_tasks(model, tokenizer, ["words"], tmp_path, data_dir, 8)["words"]
    members = list(evaluate_tasks(model, tokenizer, ["next_word", "word_order"], tmp_path, data_dir, 8).values())
    assert group.value == pytest.approx(sum(metric.value for metric in members) / 2)
    assert group.values == members[0].values + members[1].values
    assert group.samples == 80 and group.chance == pytest.approx(0.375) and 0 < group.stderr < 0.1


def lm_eval_results(accuracy: float, **leaves: list) -> dict:
    """Return lm-eval's results for a group `g` with nested members and unordered questions."""
    samples = {
        name: [
            {"doc_id": place, "acc": value, "filter": "none", "arguments": [(), ()]}
            for place, value in reversed(list(enumerate(values)))
        ]
        for name, values in leaves.items()
    }
    *inner, outer = leaves
    return {
        "results": {"g": {"acc,none": accuracy, "acc_stderr,none": 0.1}},
        "group_subtasks": {"g": [outer, "inner"], "inner": inner},
        "samples": samples,
    }


def measured(results: dict) -> Measurement:
    (metric,) = harness._measurements("g", results, 0, False).values()
    return metric


def test_questions_of_a_group_are_in_one_order():
    metric = measured(lm_eval_results(0.6, b=[1.0, 0.0], a=[1, 0, True]))
    assert metric.values == (1.0, 0.0, 1.0, 1.0, 0.0) and metric.samples == 5


def test_a_mean_over_subtasks_has_no_values_of_questions():
    metric = measured(lm_eval_results((1 / 2 + 2 / 3) / 2, b=[1.0, 0.0], a=[1.0, 0.0, 1.0]))
    assert metric.values == () and metric.value == pytest.approx(7 / 12) and metric.samples == 5
    assert measured(lm_eval_results(0.5, b=[(1, 2)], a=[1.0])).values == ()


def test_mean_accuracy():
    metrics = {
        "a": Metric(value=0.5, stderr=0.03, samples=200, chance=0.25),
        "b": Metric(value=0.7, stderr=0.04, samples=100, chance=0.5),
    }
    mean = mean_accuracy(metrics)
    assert (mean.value, mean.stderr, mean.samples, mean.chance) == pytest.approx((0.6, 0.025, 2, 0.375))
    three = metrics | {"c": Metric(value=0.1, stderr=0.1, samples=9)}
    assert mean_accuracy(three).chance is None
    assert mean_accuracy(three).stderr == pytest.approx(math.sqrt(0.03**2 + 0.04**2 + 0.1**2) / 3)
    assert mean_accuracy(metrics | {"c": Metric(value=0.1, samples=1)}).stderr is None


def test_data_that_is_not_there(model, tokenizer, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"task `cloze`: no file .*cloze.jsonl; PATCH_TASK_DATA must name"):
        evaluate_tasks(model, tokenizer, ["cloze"], INCLUDE, tmp_path, 8)
    monkeypatch.delenv(harness.DATA_VARIABLE, raising=False)
    with pytest.raises(InputError, match="PATCH_TASK_DATA is not set"):
        evaluate_tasks(model, tokenizer, ["cloze"], INCLUDE, None, 8)


class FewTasks:
    """Substitute for lm-eval's tasks, whose data is on a hub."""

    def __init__(self, include_path, include_defaults):
        pass

    def load(self, tasks):
        return {"tasks": {name: FakeTask() for name in tasks}}


class FakeTask:
    DATASET_PATH, DATASET_NAME, eval_docs = "owner/piqa", None, range(3)

    def __init__(self):
        self.config = {"training_split": "train", "test_split": "test"}
        self.fewshot_cfg = SimpleNamespace(split=None, samples=None)
        self.sampler = SimpleNamespace(df=[{}, {}])

    def get_config(self, key):
        return self.config.get(key)

    def set_config(self, key, value):
        self.config[key] = value

    def set_fewshot_seed(self, seed):
        self.seed = seed


@pytest.fixture
def few_tasks(monkeypatch):
    import lm_eval.tasks

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", FewTasks)


def test_only_built_in_tasks_are_fetched(few_tasks, tmp_path):
    fetch_task_data(["cloze", "piqa"], INCLUDE, tmp_path / "receipt.json")
    expected = {"piqa": {"dataset": "owner/piqa", "name": None, "questions": 3}}
    assert json.loads((tmp_path / "receipt.json").read_text()) == expected
    with pytest.raises(InputError, match="names 'pika', which is not a task of lm-eval; known: cloze, continuation"):
        fetch_task_data(["pika"], INCLUDE, tmp_path / "receipt.json")


def test_too_few_examples_are_an_error_of_the_download(few_tasks, tmp_path):
    fetch_task_data(["piqa"], None, tmp_path / "receipt.json", {"piqa": 2})
    with pytest.raises(InputError, match="`evaluation.num_fewshot` is 3 for 'piqa', whose data has 2 examples"):
        fetch_task_data(["piqa"], None, tmp_path / "receipt.json", {"piqa": 3})


def test_an_offline_node_without_the_data(few_tasks, tmp_path, monkeypatch):
    def load(self, tasks):
        raise ConnectionError("offline\nmode")

    monkeypatch.setattr(FewTasks, "load", load)
    with pytest.raises(InputError, match="data of the task piqa cannot be fetched: the Hugging Face hub"):
        fetch_task_data(["piqa"], None, tmp_path / "receipt.json")
