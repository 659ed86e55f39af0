"""Progress of a learning run beside its log: a line or a bar, and TensorBoard, Trackio or Weights & Biases.

Progress never affects the result: a tracker failure is logged once, and training continues.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import resource
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from patch.errors import InputError

log = logging.getLogger(__name__)

# Seconds between progress lines in a log file.
PAUSE = 5
# Timeouts in seconds for a tracker's start and end, short because a scheduler may want the node back.
BEGIN, END = 20, 10
# File with the id of a run, in the folder of its checkpoints, so that a resumed run keeps it.
IDENTITY = "watch.json"
# Project name for wandb and trackio, unless their own variables set another.
PROJECT = "patch"
# Secrets to hide from logs: variable names that hold them, and the form of tokens.
_SECRETS = re.compile(r"TOKEN|KEY|SECRET|PASSWORD")
_TOKEN = re.compile(r"\bhf_\w{8,}|\bwandb_v\d_\w{8,}|\b[0-9a-f]{40,}\b|(?<=://)[^/@\s]+(?=@)")


class Reporter(Protocol):
    """Interface of an experiment tracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Watch:
    """Settings of a run's experiment trackers.

    Attributes:
        report_to: names of `REPORTERS`.
        folder: folder of the files of TensorBoard and wandb.
        run: name of the run; parts are separated by slashes.
        settings: settings of the run, shown with it.
    """

    report_to: tuple[str, ...] = ()
    folder: Path = Path("watch")
    run: str = "learn"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Check that the trackers are installed, before anything is computed.

        Raises:
            InputError: one is not installed or unknown; the message names what to install.
        """
        for name in self.report_to:
            if name not in REPORTERS:
                raise InputError(f"`resources.report_to` names '{name}'; it may name {', '.join(REPORTERS)}")
            try:
                importlib.import_module(REPORTERS[name][0])
            except ImportError as error:
                raise InputError(
                    f"`resources.report_to` names {name}, which is not installed ({error}); pip install {name}, or "
                    "pip install -e '.[watch]' for all of them"
                ) from error

    def start(self, first_step: int, checkpoints: Path) -> Reporters:
        """Start to report, from ``first_step`` on; a resumed run reports under its old id."""
        reporters = Reporters()
        if self.report_to:
            identity = _identity(checkpoints / IDENTITY, first_step)
            for name in self.report_to:
                reporters.add(name, lambda name=name: REPORTERS[name][1](self, identity, first_step))
        return reporters


def _identity(path: Path, first_step: int) -> str:
    try:
        if first_step:
            return json.loads(path.read_text())["id"]
    except (OSError, ValueError, KeyError):
        pass  # the run was not reported before
    identity = uuid.uuid4().hex[:12]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"id": identity}))
    except OSError as error:
        log.warning("the name of the run cannot be kept in %s: %s", path, error.strerror)
    return identity


class Reporters:
    """Trackers that a run is reported to; one that fails is dropped."""

    def __init__(self) -> None:
        self._there: dict[str, Reporter] = {}

    def add(self, name: str, make: Any) -> None:
        """Add the tracker that ``make`` returns."""
        try:
            self._there[name] = make()
        except Exception as error:  # noqa: BLE001 - no error of a tracker may end the run
            _tell(name, error)

    def log(self, step: int, line: Mapping[str, float | None]) -> None:
        """Report the numbers of a step."""
        values = {key: value for key, value in line.items() if value is not None and key != "step"}
        for name, reporter in list(self._there.items()):
            try:
                reporter.log(step, values)
            except Exception as error:  # noqa: BLE001 - see above
                del self._there[name]
                _tell(name, error)

    def close(self) -> None:
        """Close the trackers, with a timeout, since one may wait for a network that is down."""
        for name, reporter in self._there.items():
            closing = threading.Thread(target=_close, args=(name, reporter), daemon=True)
            closing.start()
            closing.join(END)
            if closing.is_alive():
                _tell(name, TimeoutError(f"it has not ended after {END} s"))
        self._there.clear()


def _close(name: str, reporter: Reporter) -> None:
    try:
        reporter.close()
    except Exception as error:  # noqa: BLE001 - see above
        _tell(name, error)


def _tell(name: str, error: Exception) -> None:
    log.warning("reporting to %s has failed and ends, the run goes on: %s", name, without_secrets(repr(error)))


def without_secrets(text: str) -> str:
    """Return ``text`` without anything that looks like a token or is the value of a variable that holds one."""
    for name, value in os.environ.items():
        if _SECRETS.search(name.upper()) and len(value) >= 8:
            text = text.replace(value, "***")
    return _TOKEN.sub("***", text)


class _TensorBoard:
    def __init__(self, watch: Watch, identity: str, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Discard points from this step on: they are of an earlier run, or of one that ended after its last checkpoint.
        self._writer = SummaryWriter(
            str(watch.folder / "tensorboard" / watch.run), purge_step=first_step, flush_secs=10
        )
        self._writer.add_text("settings", f"```json\n{json.dumps(watch.settings, indent=1)}\n```", first_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class _Trackio:
    def __init__(self, watch: Watch, identity: str, first_step: int) -> None:
        import trackio

        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{watch.run} {identity}",
            config=dict(watch.settings),
            resume="allow",
            embed=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Wandb:
    def __init__(self, watch: Watch, identity: str, first_step: int) -> None:
        import wandb

        watch.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=watch.run,
            id=identity,
            resume="allow",
            # Cluster nodes often have no network, and wandb would wait for it.
            mode=os.environ.get("WANDB_MODE", "offline"),
            dir=str(watch.folder),
            config=dict(watch.settings),
            # Keep wandb out of the stage's own output.
            settings=wandb.Settings(console="off", silent=True, init_timeout=BEGIN),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


# Module whose import shows that a tracker is installed, and the class that reports to it.
REPORTERS: dict[str, tuple[str, type]] = {
    "tensorboard": ("torch.utils.tensorboard", _TensorBoard),
    "trackio": ("trackio", _Trackio),
    "wandb": ("wandb", _Wandb),
}


class Progress:
    """Progress display of a run: a bar on a terminal, a line every few seconds in a file."""

    def __init__(self, name: str, first: int, steps: int) -> None:
        self.name, self.first, self.steps = name, first, steps
        self._started = self._shown = time.monotonic()
        self._bar = None
        if sys.stdout.isatty():
            self._bar = tqdm(
                total=steps, initial=first, desc=name, unit="step", file=sys.stdout, dynamic_ncols=True, mininterval=0.2
            )

    def show(self, done: int, loss: float) -> None:
        """Show that ``done`` steps are done."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            self._bar.update(done - self._bar.n)
        elif now - self._shown > PAUSE or done == self.steps:
            self._shown = now
            pace = (now - self._started) / (done - self.first)
            line = f"{self.name} {done}/{self.steps}  loss {loss:.4f}  {pace:.3f} s/step"
            print(f"{line}  {(self.steps - done) * pace:.0f} s left", flush=True)

    def close(self) -> None:
        """Close the bar and leave it on the terminal."""
        if self._bar is not None:
            self._bar.close()


def peak_memory_mb(device: torch.device | str) -> float:
    """Return the peak memory of this process so far, in MB: GPU memory if it computes on a GPU, else host memory."""
    if torch.device(device).type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1)
