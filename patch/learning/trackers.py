"""Experiment trackers of a learning run: TensorBoard, Trackio and Weights & Biases, through accelerate.

Tracking never affects the result: the failure of a tracker is logged once, and training continues without it.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patch.errors import InputError

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

log = logging.getLogger(__name__)

# Supported trackers, and the module whose import shows that one is installed.
TRACKERS = {"tensorboard": "torch.utils.tensorboard", "trackio": "trackio", "wandb": "wandb"}
# Timeouts in seconds for a tracker's start and end, short because a scheduler may want the node back.
START_TIMEOUT, CLOSE_TIMEOUT = 20, 10
# File with the id of a run, in the folder of its checkpoints, so that a resumed run keeps it.
RUN_ID = "trackers.json"
# Project name for wandb and trackio, unless their own variables set another.
PROJECT = "patch"
# Secrets to hide from logs: variable names that hold them, and the form of tokens.
_SECRETS = re.compile(r"TOKEN|KEY|SECRET|PASSWORD")
_TOKEN = re.compile(r"\bhf_\w{8,}|\bwandb_v\d_\w{8,}|\b[0-9a-f]{40,}\b|(?<=://)[^/@\s]+(?=@)")


@dataclass(frozen=True)
class Tracking:
    """Reporting of a run's progress, and settings of its experiment trackers.

    Attributes:
        report_to: names of `TRACKERS`.
        folder: folder of the files of TensorBoard and wandb.
        run: name of the run; parts are separated by slashes.
        settings: settings of the run, shown with it.
        on_progress: called every few seconds with the completed steps, their total, and the estimated seconds that are
            left; None at the start of a run.
    """

    report_to: tuple[str, ...] = ()
    folder: Path = Path("watch")
    run: str = "learn"
    settings: Mapping[str, Any] = field(default_factory=dict)
    on_progress: Callable[[int, int, float | None], None] = lambda done, total, seconds_left: None

    def check(self) -> None:
        """Check that the trackers are installed, before anything is computed.

        Raises:
            InputError: one is not installed or unknown; the message names what to install.
        """
        for name in self.report_to:
            if name not in TRACKERS:
                raise InputError(f"`resources.report_to` names '{name}'; it may name {', '.join(TRACKERS)}")
            try:
                importlib.import_module(TRACKERS[name])
            except ImportError as error:
                raise InputError(
                    f"`resources.report_to` names {name}, which is not installed ({error}); pip install {name}, or "
                    "pip install -e '.[watch]' for all of them"
                ) from error


UNTRACKED = Tracking()


class Trackers:
    """Running trackers of a run; one that fails is dropped.

    Args:
        tracking: settings of the trackers.
        first_step: step at which the run begins or resumes.
        checkpoints: folder of the run's checkpoints, which keeps its id.
    """

    def __init__(self, tracking: Tracking, first_step: int, checkpoints: Path) -> None:
        self._running: dict[str, GeneralTracker] = {}
        run_id = _run_id(checkpoints / RUN_ID, first_step) if tracking.report_to else ""
        for name in tracking.report_to:
            self._try(name, self._start, name, tracking, run_id, first_step)

    def _start(self, name: str, tracking: Tracking, run_id: str, first_step: int) -> None:
        from accelerate import PartialState
        from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

        PartialState()  # accelerate's trackers log through it
        run, settings = tracking.run, dict(tracking.settings)
        if name == "tensorboard":
            # Discard points from this step on: they are of an earlier run, or of one that ended after its checkpoint.
            tracker = TensorBoardTracker(run, str(tracking.folder / name), purge_step=first_step)
        elif name == "trackio":
            options = {"name": f"{run} {run_id}", "config": settings, "resume": "allow", "embed": False}
            tracker = TrackioTracker(os.environ.get("TRACKIO_PROJECT", PROJECT), **options)
        else:
            import wandb

            tracking.folder.mkdir(parents=True, exist_ok=True)
            # Keep wandb out of the stage's own output.
            quiet = wandb.Settings(console="off", silent=True, init_timeout=START_TIMEOUT)
            options = {"name": run, "id": run_id, "config": settings, "resume": "allow", "settings": quiet}
            # Cluster nodes often have no network, and wandb would wait for it.
            options |= {"dir": str(tracking.folder), "mode": os.environ.get("WANDB_MODE", "offline")}
            tracker = WandBTracker(os.environ.get("WANDB_PROJECT", PROJECT), **options)
        tracker.start()
        if name == "tensorboard":
            # As text: its hyper-parameters cannot be nested.
            tracker.log({"settings": f"```json\n{json.dumps(settings, indent=1)}\n```"}, first_step)
        self._running[name] = tracker

    def log(self, step: int, line: Mapping[str, float | None]) -> None:
        """Report the numbers of a step."""
        values = {key: value for key, value in line.items() if value is not None and key != "step"}
        for name, tracker in list(self._running.items()):
            self._try(name, tracker.log, values, step)

    def close(self) -> None:
        """Close the trackers, with a timeout, since one may wait for a network that is down."""
        for name, tracker in list(self._running.items()):
            closing = threading.Thread(target=self._try, args=(name, tracker.finish), daemon=True)
            closing.start()
            closing.join(CLOSE_TIMEOUT)
            if closing.is_alive():
                self._drop(name, TimeoutError(f"it has not ended after {CLOSE_TIMEOUT} s"))
        self._running.clear()

    def _try(self, name: str, action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(*arguments)
        except Exception as error:  # noqa: BLE001 - no error of a tracker may end the run
            self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        self._running.pop(name, None)
        log.warning("the tracker %s has failed, training continues without it: %s", name, without_secrets(repr(error)))


def _run_id(path: Path, first_step: int) -> str:
    """Return the id of a resumed run from the file ``path``, or a new one, which is written there."""
    try:
        if first_step:
            return json.loads(path.read_text())["id"]
    except (OSError, ValueError, KeyError):
        pass  # the run had no trackers before
    run_id = uuid.uuid4().hex[:12]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"id": run_id}))
    except OSError as error:
        log.warning("the id of the run cannot be kept in %s: %s", path, error.strerror)
    return run_id


def without_secrets(text: str) -> str:
    """Return ``text`` without anything that looks like a token or is the value of a variable that holds one."""
    for name, value in os.environ.items():
        if _SECRETS.search(name.upper()) and len(value) >= 8:
            text = text.replace(value, "***")
    return _TOKEN.sub("***", text)
