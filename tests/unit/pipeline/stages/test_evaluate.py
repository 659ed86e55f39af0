"""A stopped evaluation resumes after its last finished metric and gives the same record."""

from __future__ import annotations

import json
import math
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patch.data.tokenizer import train_tokenizer
from patch.evaluation.harness import TaskEvaluator
from patch.masks.nm import NM
from patch.masks.packed import MaskSet, save_masks
from patch.models.dispatch import dispatch_blocks
from patch.models.loading import prunable_linears
from patch.pipeline.results.record import Record
from patch.pipeline.results.samples import Samples
from patch.pipeline.stages import evaluate as evaluate_stage
from patch.pruning.magnitude import magnitude

TASKS = ["cloze", "next_word", "continuation"]
WORDS = ["lorem", "ipsum", "dolor", "sit", "amet", "consectetur", "elit", "sed", "eiusmod", "tempor", "ut", "labore"]


@pytest.fixture
def options(files: Any, tiny_model: Callable, tmp_path: Path) -> dict[str, Path]:
    """Return the paths of a model with a tokenizer, sequences and task data."""
    tokenizer = train_tokenizer([" ".join(WORDS)], 320)
    tiny_model("qwen2", vocab_size=len(tokenizer)).save_pretrained(files.model)
    tokenizer.save_pretrained(files.model)
    rng, data = random.Random(0), tmp_path / "tasks"
    data.mkdir()
    for task in TASKS:
        rows = []
        for _ in range(20):
            query, *choices = (" ".join(rng.choices(WORDS, k=3)) for _ in range(5))
            rows.append(json.dumps({"query": query, "choices": choices, "gold": rng.randrange(4)}))
        (data / f"{task}.jsonl").write_text("\n".join(rows))
    partial = tmp_path / "work/partial.json"
    return {"model": files.model, "sequences": files.sequences, "tasks": data, "partial": partial}


@pytest.fixture
def settings(files: Any) -> dict[str, Any]:
    """Return the settings of the dense run with several tasks."""
    settings = files.settings("dense")
    return settings | {"evaluation": settings["evaluation"] | {"tasks": TASKS}}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of measured metrics; an item `stop` in it requests a SIGUSR2 before `next_word`."""
    names: list[str] = []
    task, perplexity = TaskEvaluator.measure, evaluate_stage.perplexity

    def measure(self: TaskEvaluator, name: str, fewshot: int) -> Any:
        if name == "next_word" and "stop" in names:
            names.remove("stop")
            os.kill(os.getpid(), signal.SIGUSR2)
        names.append(name)
        return task(self, name, fewshot)

    def measure_perplexity(*arguments: Any) -> Any:
        names.append("perplexity")
        return perplexity(*arguments)

    monkeypatch.setattr(TaskEvaluator, "measure", measure)
    monkeypatch.setattr(evaluate_stage, "perplexity", measure_perplexity)
    return names


def test_a_stopped_evaluation_goes_on(
    stage: Callable, settings: dict, options: dict, measured: list[str], tmp_path: Path
) -> None:
    whole = stage(
        "evaluate", settings, **options, record=tmp_path / "whole.json", samples=tmp_path / "whole_samples.json"
    )
    assert whole.code == 0, whole.error
    assert "task 2 of 3: next_word" in whole.out and "resumed" not in whole.out
    assert measured == ["perplexity", *TASKS] and not options["partial"].exists()

    measured[:] = ["stop"]
    with pytest.raises(SystemExit) as stopped:
        stage("evaluate", settings, **options, record=tmp_path / "r.json", samples=tmp_path / "s.json")
    assert stopped.value.code == 75 and measured == ["perplexity", "cloze"]
    assert not (tmp_path / "r.json").exists() and not (tmp_path / "s.json").exists()
    done = json.loads(options["partial"].read_text())["parts"]
    assert list(done) == ["perplexity", "cloze"]

    measured.clear()
    ended = stage("evaluate", settings, **options, record=tmp_path / "r.json", samples=tmp_path / "s.json")
    assert ended.code == 0, ended.error
    assert "resumed: perplexity, cloze\n" in ended.out and measured == ["next_word", "continuation"]
    assert not options["partial"].exists()
    one, other = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "r.json"))
    assert one["metrics"] == other["metrics"]
    assert list(one["metrics"]) == list(other["metrics"]) == ["perplexity", "accuracy", *TASKS]
    assert (tmp_path / "s.json").read_bytes() == (tmp_path / "whole_samples.json").read_bytes()
    # The cost before the stop counts.
    assert other["stages"]["evaluate"]["seconds"] > sum(part["cost"]["seconds"] for part in done.values())


def test_parts_of_other_inputs_are_measured_again(
    stage: Callable, settings: dict, options: dict, measured: list[str], tmp_path: Path
) -> None:
    measured[:] = ["stop"]
    with pytest.raises(SystemExit):
        stage("evaluate", settings, **options, record=tmp_path / "r.json", samples=tmp_path / "s.json")
    measured.clear()
    ended = stage(
        "evaluate",
        settings | {"upstream": "another mask"},
        **options,
        record=tmp_path / "r.json",
        samples=tmp_path / "s.json",
    )
    assert ended.code == 0 and "resumed" not in ended.out
    assert measured == ["perplexity", *TASKS]


def test_nothing_is_measured_when_only_the_record_is_missing(
    stage: Callable, settings: dict, options: dict, measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(evaluate_stage, "describe_environment", lambda device: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stage("evaluate", settings, **options, record=tmp_path / "r.json", samples=tmp_path / "s.json")
    samples = (tmp_path / "s.json").read_bytes()
    measured.clear()
    ended = stage("evaluate", settings, **options, record=tmp_path / "r.json", samples=tmp_path / "s.json")
    assert ended.code == 0 and measured == []
    assert (tmp_path / "s.json").read_bytes() == samples
    assert "resumed: perplexity, cloze, next_word, continuation" in ended.out


def test_samples_make_the_record(stage: Callable, settings: dict, options: dict, tmp_path: Path) -> None:
    assert stage("evaluate", settings, **options, record=tmp_path / "r.json", samples=tmp_path / "sub/s.json").code == 0
    record, samples = Record.read(tmp_path / "r.json"), Samples.read(tmp_path / "sub/s.json")
    assert samples.experiment == record.experiment and samples.run.id == record.run.id
    assert list(samples.samples) == ["perplexity", *TASKS]
    assert math.exp(samples.samples["perplexity"].mean()) == pytest.approx(record.metrics["perplexity"].value)
    for name, values in samples.samples.items():
        assert len(values) == record.metrics[name].samples
    for task in TASKS:
        assert samples.samples[task].mean() == pytest.approx(record.metrics[task].value)
        assert set(samples.samples[task]) <= {0, 1}
    # Only the record marks a run as done.
    assert (tmp_path / "sub/s.json").stat().st_mtime_ns <= (tmp_path / "r.json").stat().st_mtime_ns
    assert "values" not in (tmp_path / "r.json").read_text()


def test_without_a_file_it_measures_all(stage: Callable, settings: dict, options: dict, tmp_path: Path) -> None:
    del options["partial"]
    assert stage("evaluate", settings, **options, record=tmp_path / "r.json", samples=tmp_path / "s.json").code == 0


OWN_TASKS = {
    "choice.yaml": """
task: choice
include: _common
test_split: test
output_type: multiple_choice
doc_to_choice: ["lorem", "ipsum dolor sit amet"]
doc_to_target: 0
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "answer.yaml": """
task: answer
include: _common
output_type: generate_until
test_split: test
doc_to_target: lorem
metric_list: [{metric: exact_match}]
generation_kwargs: {until: [" "], max_gen_toks: 3}
""",
    "_common": """
custom_dataset: !function loader.load
training_split: train
doc_to_text: "Q: {{query}} A:"
""",
    "loader.py": """
from datasets import Dataset

def load(**metadata):
    rows = [{"query": word} for word in ("sit", "amet", "elit", "sed", "ut")]
    return {"train": Dataset.from_list(rows[:2]), "test": Dataset.from_list(rows[2:])}
""",
}


def test_other_metrics_and_few_shot_examples_are_recorded(
    stage: Callable, settings: dict, options: dict, tmp_path: Path
) -> None:
    for name, text in OWN_TASKS.items():
        (options["tasks"] / name).write_text(text)
    evaluation = settings["evaluation"] | {
        "tasks": ["choice", "answer"],
        "include_path": str(options["tasks"]),
        "num_fewshot": {"choice": 1},
        "acc_norm": True,
    }
    ran = stage(
        "evaluate",
        settings | {"evaluation": evaluation},
        **options,
        record=tmp_path / "r.json",
        samples=tmp_path / "s.json",
    )
    assert ran.code == 0, ran.error
    record, samples = Record.read(tmp_path / "r.json"), Samples.read(tmp_path / "s.json")
    assert list(record.metrics) == ["perplexity", "accuracy", "choice", "choice/acc_norm", "answer/exact_match"]
    assert record.metrics["accuracy"].value == record.metrics["choice"].value
    assert record.metrics["accuracy"].samples == 1
    fewshot = {name: metric.fewshot for name, metric in record.metrics.items()}
    assert list(fewshot.values()) == [None, None, 1, 1, 0]
    assert list(samples.samples) == ["perplexity", "choice", "choice/acc_norm", "answer/exact_match"]
    for name in list(samples.samples)[1:]:
        assert samples.samples[name].mean() == pytest.approx(record.metrics[name].value)
        assert len(samples.samples[name]) == record.metrics[name].samples == 3
    choice, norm = (100 * record.metrics[name].value for name in ("choice", "choice/acc_norm"))
    assert f"task 1 of 2: choice {choice:.2f} %, choice/acc_norm {norm:.2f} %, in " in ran.out


def test_perplexity_alone(stage: Callable, settings: dict, options: dict, measured: list[str], tmp_path: Path) -> None:
    del options["tasks"]
    ran = stage(
        "evaluate",
        settings | {"evaluation": settings["evaluation"] | {"tasks": []}},
        **options,
        record=tmp_path / "r.json",
        samples=tmp_path / "s.json",
    )
    assert ran.code == 0, ran.error
    assert list(Record.read(tmp_path / "r.json").metrics) == list(Samples.read(tmp_path / "s.json").samples) == measured
    assert measured == ["perplexity"] and "accuracy" not in ran.out


def test_several_gpus_give_the_record_of_one(
    stage: Callable, files: Any, options: dict, tiny_model: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each GPU of the second evaluation is the CPU, with the hooks that move hidden states."""
    for name, text in OWN_TASKS.items():
        (options["tasks"] / name).write_text(text)
    model, mask = tiny_model("qwen2", vocab_size=320, num_hidden_layers=8), tmp_path / "mask.safetensors"
    model.save_pretrained(options["model"])
    masks = MaskSet(
        {name: magnitude(linear.weight, NM(2, 4)) for name, linear in prunable_linears(model).items()}, "2:4"
    )
    settings = files.evaluation("magnitude", mask=files.save(mask, masks))
    masks.header["cost"] = {"seconds": 1.0, "peak_memory_mb": 1.0}
    save_masks(mask, masks)
    settings["evaluation"] |= {"tasks": ["choice", "answer"], "include_path": str(options["tasks"])}
    del options["partial"]

    def evaluate(name: str, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        outputs = {"record": tmp_path / f"{name}.json", "samples": tmp_path / f"{name}_samples.json"}
        ran = stage("evaluate", settings, mask=mask, **options, **outputs, **more)
        assert ran.code == 0, ran.error
        return json.loads(outputs["record"].read_text()), json.loads(outputs["samples"].read_text())

    (one, one_samples), (other, _) = evaluate("one"), evaluate("on_a_cpu", gpus=3)
    assert other["metrics"] == one["metrics"]

    devices, reset, memory = [], [], [5e6, 7e6, 6e6]

    def dispatch(network: torch.nn.Module, gpus: list[torch.device]) -> None:
        devices.extend(gpus)
        assert (prunable_linears(network)["model.layers.0.mlp.up_proj"].weight == 0).float().mean() == 0.5
        dispatch_blocks(network, [torch.device("cpu")] * len(gpus))

    settings["device"] = "cuda"
    monkeypatch.setattr(evaluate_stage, "prepare_device", lambda device, gpus: device)
    monkeypatch.setattr(evaluate_stage, "dispatch_blocks", dispatch)
    monkeypatch.setattr(evaluate_stage, "describe_environment", lambda device: one["environment"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", memory.__getitem__)
    other, other_samples = evaluate("other", gpus=3)
    assert devices == [torch.device("cuda", gpu) for gpu in range(3)] and reset[:3] == [0, 1, 2]
    assert other["stages"]["evaluate"]["peak_memory_mb"] == 7
    for key in ("metrics", "achieved_sparsity", "density"):
        assert other[key] == one[key]
    assert other_samples["samples"] == one_samples["samples"]


def test_fewer_gpus_than_the_model_needs(
    stage: Callable,
    settings: dict,
    options: dict,
    job_file: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    options |= {"record": tmp_path / "r.json", "samples": tmp_path / "s.json"}
    # As the workflow gives the number.
    inputs = job_file("inputs", {"gpus": "4"})
    ran = stage("evaluate", settings | {"device": "cuda"}, inputs=inputs, **options)
    assert ran.code == 2 and "the model needs 4 GPUs but torch finds 2 on " in ran.error
