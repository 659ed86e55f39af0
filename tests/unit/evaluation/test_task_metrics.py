"""`acc_norm`, few-shot prompts and generated answers against slow computations in float64."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from patch.errors import InputError
from patch.evaluation.harness import TaskEvaluator

LOADER = '''
import json
from pathlib import Path
from datasets import Dataset

def load(task, **metadata):
    """Return the splits of a task."""
    splits = json.loads(Path(__file__).with_name(f"{task}.json").read_text())
    return {name: Dataset.from_list(rows) for name, rows in splits.items()}
'''
CHOICE = """
task: choice
custom_dataset: !function loader.load
dataset_kwargs: {task: choice}
training_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{query}}\\nA:"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ANSWER = """
task: answer
custom_dataset: !function loader.load
dataset_kwargs: {task: answer}
test_split: test
output_type: generate_until
doc_to_text: "{{query}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
generation_kwargs: {until: ["e"], max_gen_toks: 6, do_sample: false}
filter_list:
  - name: first-letter
    filter: [{function: regex, regex_pattern: "([a-z])"}, {function: take_first}]
  - name: whole
    filter: [{function: take_first}]
"""


@pytest.fixture
def folder(tmp_path: Path, words: list[str]) -> Path:
    """Return a folder with the tasks and the data of `choice`, whose choices differ in length."""
    (tmp_path / "loader.py").write_text(LOADER)
    (tmp_path / "choice.yaml").write_text(CHOICE)
    (tmp_path / "answer.yaml").write_text(ANSWER)
    rng = random.Random(0)

    def question(number: int) -> dict[str, Any]:
        choices = [" ".join(rng.choices([*words, "é"], k=count)) for count in (1, 2, 5, 9)]
        return {"query": f"{number} {rng.choice(words)}", "choices": choices, "gold": rng.randrange(4)}

    splits = {"train": [question(number) for number in range(8)], "test": [question(100 + n) for n in range(30)]}
    (tmp_path / "choice.json").write_text(json.dumps(splits))
    return tmp_path


@torch.no_grad()
def log_likelihood(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: str, text: str) -> float:
    start, ids = len(tokenizer(context)["input_ids"]), tokenizer(f"{context} {text}")["input_ids"]
    log_probs = model.double()(torch.tensor([ids])).logits[0].log_softmax(-1)
    model.float()
    return sum(log_probs[place - 1, ids[place]].item() for place in range(start, len(ids)))


def test_acc_norm_divides_by_the_length_of_a_choice(model: Any, tokenizer: Any, folder: Path) -> None:
    found = TaskEvaluator(model, tokenizer, ["choice"], folder, None, 7, acc_norm=True).measure("choice")
    assert list(found) == ["choice", "choice/acc_norm"]
    right: dict[str, list[float]] = {name: [] for name in found}
    for question in json.loads((folder / "choice.json").read_text())["test"]:
        prompt, choices = f"Q: {question['query']}\nA:", question["choices"]
        scores = [log_likelihood(model, tokenizer, prompt, choice) for choice in choices]
        per_character = [score / len(choice) for score, choice in zip(scores, choices, strict=True)]
        for name, values in (("choice", scores), ("choice/acc_norm", per_character)):
            right[name].append(float(values.index(max(values)) == question["gold"]))
    assert right["choice"] != right["choice/acc_norm"]
    for name, metric in found.items():
        mean = sum(right[name]) / 30
        assert metric.values == tuple(right[name]) and metric.samples == 30 and metric.chance == pytest.approx(0.25)
        assert metric.value == pytest.approx(mean)
        assert metric.stderr == pytest.approx(math.sqrt(mean * (1 - mean) / 29))
    plain = TaskEvaluator(model, tokenizer, ["choice"], folder, None, 7).measure("choice")
    assert plain == {"choice": found["choice"]}


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of the prompts of all log-likelihoods."""
    from patch.evaluation.lm_eval_model import AlignedLM

    seen: list[str] = []
    original = AlignedLM.loglikelihood

    def spy(self: AlignedLM, requests: list[Any], **options: Any) -> list[tuple[float, bool]]:
        seen.extend(request.args[0] for request in requests)
        return original(self, requests, **options)

    monkeypatch.setattr(AlignedLM, "loglikelihood", spy)
    return seen


def test_a_prompt_has_the_examples_that_are_asked_for(
    model: Any, tokenizer: Any, folder: Path, prompts: list[str]
) -> None:
    evaluator = TaskEvaluator(model, tokenizer, ["choice"], folder, None, 7, limit=5)
    assert evaluator.measure("choice", 0)["choice"].fewshot == 0
    questions = json.loads((folder / "choice.json").read_text())
    asked = [f"Q: {question['query']}\nA:" for question in questions["test"][:5] for _ in range(4)]
    assert prompts == asked
    prompts.clear()
    assert evaluator.measure("choice", 3)["choice"].fewshot == 3
    solved = {f"Q: {q['query']}\nA: {q['choices'][q['gold']]}" for q in questions["train"]}
    for prompt, question in zip(prompts, asked, strict=True):
        *examples, last = prompt.split("\n\n")
        assert last == question and len(set(examples)) == 3 and set(examples) <= solved
    assert len(set(prompts)) == 5
    again = list(prompts)
    prompts.clear()
    TaskEvaluator(model, tokenizer, ["choice"], folder, None, 7, limit=5).measure("choice", 3)
    assert prompts == again


def test_long_prompts_are_reported(
    model: Any, tokenizer: Any, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.config, "max_position_embeddings", 80)
    evaluator = TaskEvaluator(model, tokenizer, ["choice"], folder, None, 7, limit=2)
    evaluator.measure("choice", 1)
    assert "lose their beginning" not in caplog.text
    evaluator.measure("choice", 8)
    assert "8 of 8 prompts are longer than 81 tokens" in caplog.text


@torch.no_grad()
def slow_answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, query: str) -> str:
    """Return the answer of at most six tokens before an `e`, by greedy decoding without a cache, in float64."""
    ids = tokenizer(query)["input_ids"]
    start, answer = len(ids), ""
    model.double()
    while len(ids) < start + 6 and "e" not in answer and ids[-1] != tokenizer.eos_token_id:
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        answer = tokenizer.decode(ids[start:])
    model.float()
    return answer.partition("e")[0]


def test_generated_answers_are_those_of_a_greedy_loop(
    model: Any, tokenizer: Any, folder: Path, words: list[str]
) -> None:
    rng = random.Random(1)
    queries = [" ".join(rng.choices(words, k=rng.randint(1, 8))) for _ in range(12)]
    answers = [slow_answer(model, tokenizer, query) for query in queries]
    letters = [(re.findall("[a-z]", answer) or ["[invalid]"])[0] for answer in answers]
    # The gold answer is the whole answer, its first letter, or neither.
    golds = [one[place % 3] for place, one in enumerate(zip(answers, letters, "?" * 12, strict=True))]
    rows = [{"query": query, "answer": gold} for query, gold in zip(queries, golds, strict=True)]
    (folder / "answer.json").write_text(json.dumps({"test": rows}))
    evaluator = TaskEvaluator(model, tokenizer, ["answer"], folder, None, 5)
    found = evaluator.measure("answer")
    assert list(found) == ["answer/first-letter", "answer/whole"]
    for metric, given in zip(found.values(), (letters, answers), strict=True):
        right = tuple(float(one == gold) for one, gold in zip(given, golds, strict=True))
        assert metric.values == right and 0 < sum(right) < 12
        assert metric.value == pytest.approx(sum(right) / 12)
        assert metric.stderr == pytest.approx(math.sqrt(metric.value * (1 - metric.value) / 11))
        assert metric.chance is None and metric.fewshot == 0 and metric.samples == 12
    assert evaluator.measure("answer") == found


@pytest.fixture
def edited(folder: Path) -> Callable[[str, str, str], None]:
    """Return a function that replaces a text of a task file, with data for `answer`."""
    (folder / "answer.json").write_text(json.dumps({"test": [{"query": "sit", "answer": "amet"}]}))

    def edit(file: str, old: str, new: str) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return edit


def test_answers_without_filters_have_the_name_of_the_metric(
    model: Any, tokenizer: Any, folder: Path, edited: Callable
) -> None:
    edited("answer.yaml", ANSWER[ANSWER.index("filter_list") :], "")
    assert list(TaskEvaluator(model, tokenizer, ["answer"], folder, None, 5).measure("answer")) == [
        "answer/exact_match"
    ]


@pytest.mark.parametrize(
    ("change", "task", "fewshot", "message"),
    [
        (
            ("answer.yaml", "do_sample: false", "do_sample: true"),
            "answer",
            0,
            r"'answer', which samples its answers \(`do_sample: True`\); only greedy",
        ),
        (
            ("answer.yaml", "max_gen_toks: 6", "max_gen_toks: 256"),
            "answer",
            0,
            "task `answer` generates up to 256 tokens, but the context of the model has 256",
        ),
        (
            ("choice.yaml", "{metric: acc}, {metric: acc_norm}", "{metric: brier_score}"),
            "choice",
            0,
            "'choice', which is measured by neither `acc` nor `exact_match`",
        ),
        (None, "answer", 2, "`evaluation.num_fewshot` is 2 for 'answer', whose data has no examples but its questions"),
        (None, "choice", 9, "`evaluation.num_fewshot` is 9 for 'choice', whose data has 8 examples"),
        (
            ("choice.yaml", "training_split: train", "fewshot_split: test"),
            "choice",
            30,
            "`evaluation.num_fewshot` is 30 for 'choice', whose data has 29 examples",
        ),
    ],
)
def test_what_cannot_be_measured(
    change: tuple[str, str, str] | None,
    task: str,
    fewshot: int,
    message: str,
    model: Any,
    tokenizer: Any,
    folder: Path,
    edited: Callable,
) -> None:
    if change:
        edited(*change)
    with pytest.raises(InputError, match=message):
        TaskEvaluator(model, tokenizer, [task], folder, None, 5).measure(task, fewshot)
