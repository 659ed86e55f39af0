"""Tests of the experiment trackers: they get the numbers of the log, and no failure of theirs ends a run."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from patch.errors import InputError
from patch.learning import trackers as trackers_module
from patch.learning.trackers import TRACKERS, Tracking, without_secrets
from patch.pipeline.config.load import validate_experiment
from patch.pipeline.runs.plan import Plan

ALL = ("tensorboard", "trackio", "wandb")
SECRET = "0123456789abcdef-secret"


class Library:
    """Fake of the three tracker libraries: it records the calls, and fails at a given place."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, dict[str, Any]]] = []
        self.lines: dict[str, list[tuple[int, dict[str, float]]]] = {name: [] for name in ALL}
        self.closed: list[str] = []
        # Library, and the step that it fails at, "init" or "close".
        self.failure: tuple[str, Any] | None = None

    def may_fail(self, name: str, where: Any) -> None:
        if self.failure == (name, where):
            raise RuntimeError(f"no route to https://user:{SECRET}@host for {os.environ.get('WANDB_API_KEY')}")

    def begin(self, name: str, /, **options: Any) -> SimpleNamespace:
        self.begun.append((name, options))
        self.may_fail(name, "init")
        return SimpleNamespace(log=lambda values, step: self.log(name, step, values), finish=lambda: self.end(name))

    def log(self, name: str, step: int, values: dict[str, float]) -> None:
        self.may_fail(name, step)
        self.lines[name].append((step, values))

    def end(self, name: str) -> None:
        self.closed.append(name)
        self.may_fail(name, "close")

    def modules(self) -> dict[str, ModuleType]:
        library = self

        class SummaryWriter:
            def __init__(self, folder: str, **options: Any) -> None:
                library.begin("tensorboard", folder=folder, **options)

            def add_text(self, *arguments: Any, **options: Any) -> None: ...

            def add_scalar(self, key: str, value: float, global_step: int) -> None:
                lines = library.lines["tensorboard"]
                if not lines or lines[-1][0] != global_step:
                    library.log("tensorboard", global_step, {})
                lines[-1][1][key] = value

            def flush(self) -> None: ...

            def close(self) -> None:
                library.end("tensorboard")

        contents = {
            "torch.utils.tensorboard": {"SummaryWriter": SummaryWriter},
            "trackio": {"init": lambda **options: self.begin("trackio", **options)},
            "wandb": {"init": lambda **options: self.begin("wandb", **options), "Settings": SimpleNamespace},
        }
        modules = {name: ModuleType(name) for name in contents}
        for name, module in modules.items():
            # accelerate looks for the packages by their specifications.
            vars(module).update(contents[name], __spec__=ModuleSpec(name, None))
        return modules


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    """Fake that replaces all three libraries."""
    found = Library()
    for name, module in found.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.utils, "tensorboard", sys.modules["torch.utils.tensorboard"], raising=False)
    for name in ("WANDB_MODE", "WANDB_PROJECT", "TRACKIO_PROJECT", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.fixture
def tracking(tmp_path: Path) -> Tracking:
    return Tracking(ALL, tmp_path / "watch", "tiny/qwen/patch-joint", {"seed": 0})


def test_all_libraries_get_the_lines_of_the_log(
    library: Library, tracking: Tracking, run_learning: Callable, same_masks: Callable, tmp_path: Path
) -> None:
    masks, _ = run_learning("maskllm", folder="alone")
    found, _ = run_learning("maskllm", folder="run", tracking=tracking, log_every=2)
    same_masks(found, masks)
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert lines[0]["target_density"] is None
    for name in ALL:
        expected = [
            {key: value for key, value in line.items() if key != "step" and value is not None} for line in lines
        ]
        assert library.lines[name] == list(zip([0, 2, 4], expected, strict=True))
    assert library.closed == list(ALL)
    options = dict(library.begun)
    assert options["tensorboard"]["folder"] == str(tmp_path / "watch/tensorboard/tiny/qwen/patch-joint")
    assert options["trackio"]["name"].startswith("tiny/qwen/patch-joint ")
    assert options["wandb"]["name"] == "tiny/qwen/patch-joint" and options["wandb"]["config"] == {"seed": 0}
    assert options["wandb"]["project"] == options["trackio"]["project"] == "patch"


@pytest.mark.parametrize("mode", [None, "online"])
def test_wandb_is_offline_unless_its_variable_is_set(
    mode: str | None, library: Library, tracking: Tracking, run_learning: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    run_learning(tracking=tracking, steps=1)
    assert dict(library.begun)["wandb"]["mode"] == (mode or "offline")


@pytest.mark.parametrize("name", ALL)
def test_a_missing_library_is_refused_with_the_remedy(
    name: str, library: Library, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, TRACKERS[name], None)
    with pytest.raises(InputError, match=rf"names {name}, which is not installed.*pip install {name}, .*\[watch\]"):
        tracking.check()


def test_an_unknown_library() -> None:
    with pytest.raises(InputError, match="names 'mlflow'; it may name tensorboard, trackio, wandb"):
        Tracking(("mlflow",)).check()


@pytest.mark.parametrize("where", ["init", 0, 3, "close"])
@pytest.mark.parametrize("name", ALL)
def test_a_failing_tracker_is_logged_once_and_training_continues(
    name: str,
    where: Any,
    library: Library,
    tracking: Tracking,
    run_learning: Callable,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-key-that-nobody-may-see")
    library.failure = name, where
    _, curve = run_learning(tracking=tracking)
    assert len(curve) == 5
    assert caplog.text.count("has failed") == 1 and f"the tracker {name} has failed" in caplog.text
    assert SECRET not in caplog.text and "nobody" not in caplog.text and "***@host for ***" in caplog.text
    whole = [other for other in ALL if len(library.lines[other]) == 5]
    assert whole == [other for other in ALL if other != name or where == "close"]


def test_closing_a_tracker_has_a_timeout(
    library: Library,
    tracking: Tracking,
    run_learning: Callable,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trackers_module, "CLOSE_TIMEOUT", 0.1)
    monkeypatch.setattr(library, "end", lambda name: time.sleep(5 if name == "wandb" else 0))
    started = time.monotonic()
    run_learning(tracking=tracking)
    assert time.monotonic() - started < 4
    assert caplog.text.count("it has not ended after 0.1 s") == 1


def test_a_resumed_run_keeps_its_id(
    library: Library, tracking: Tracking, run_learning: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("patch.learning.learn")
    real = module.batch_indices

    def batch_indices(step: int, *rest: Any) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return real(step, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(module, "batch_indices", batch_indices)
        with pytest.raises(KeyboardInterrupt):
            run_learning(tracking=tracking, checkpoint_minutes=1e-9)
    assert library.closed == list(ALL)
    run_learning(tracking=tracking, checkpoint_minutes=1e-9)
    run_learning(tracking=tracking, folder="new")
    steps = [step for step, _ in library.lines["wandb"]]
    assert steps == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    first, resumed, new = (options for name, options in library.begun if name == "wandb")
    assert first["id"] == resumed["id"] != new["id"]
    assert first["resume"] == "allow"
    first, resumed, new = (options["name"] for name, options in library.begun if name == "trackio")
    assert first == resumed != new
    assert [options["purge_step"] for name, options in library.begun if name == "tensorboard"] == [0, 3, 0]


def test_only_the_first_process_reports(
    library: Library, tracking: Tracking, in_processes: Callable, run_learning: Callable
) -> None:
    def run(rank: int) -> tuple[int, int]:
        run_learning(tracking=tracking)
        return len(library.begun), len(library.lines["wandb"])

    assert in_processes(2, run) == [(3, 5), (0, 0)]


def test_trackers_change_no_stage_settings(raw_config: dict[str, Any]) -> None:
    plain = Plan(validate_experiment(raw_config))
    raw_config["resources"] = {"report_to": ["wandb", "tensorboard"]}
    other = Plan(validate_experiment(raw_config))
    runs = [run for run in plain.grid.closure if run.definition.stage == "learn"]
    assert runs
    for run in runs:
        assert plain.settings.learn(run) == other.settings.learn(run)
    raw_config["resources"] = {"report_to": ["mlflow"]}
    with pytest.raises(InputError, match="report_to"):
        validate_experiment(raw_config)


def test_tokens_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_HUB_TOKEN", "plain-value")
    monkeypatch.setenv("SHORT_KEY", "a")
    text = f"plain-value {'ab12' * 10} hf_abcdefghij http://me:pass@host/path a step-00000003 of 12345"
    assert without_secrets(text) == "*** *** *** http://***@host/path a step-00000003 of 12345"


def test_tensorboard_reads_the_reported_numbers(tracking: Tracking, run_learning: Callable, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, curve = run_learning(tracking=Tracking(("tensorboard",), tracking.folder, tracking.run, {"seed": 0}))
    events = EventAccumulator(str(tmp_path / "watch/tensorboard" / tracking.run))
    events.Reload()
    for key in ("loss", "density", "sparsity_term"):
        found = [(event.step, event.value) for event in events.Scalars(key)]
        assert found == [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in curve]
