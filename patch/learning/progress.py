"""Progress display of a learning run, and the memory that it uses."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import torch
from tqdm import tqdm

# Seconds between progress lines in a log file.
INTERVAL = 5


class Progress:
    """Progress display of a run: a bar on a terminal, a line every few seconds in a file.

    Args:
        name: name of the run.
        first: completed steps at the start.
        steps: number of steps.
        on_progress: called with the completed steps, ``steps``, and the estimated seconds that are left.
    """

    def __init__(
        self, name: str, first: int, steps: int, on_progress: Callable[[int, int, float | None], None]
    ) -> None:
        self.name, self.first, self.steps, self.on_progress = name, first, steps, on_progress
        on_progress(first, steps, None)
        self._started = self._shown = time.monotonic()
        self._bar = None
        if sys.stdout.isatty():
            self._bar = tqdm(
                total=steps, initial=first, desc=name, unit="step", file=sys.stdout, dynamic_ncols=True, mininterval=0.2
            )

    def show(self, done: int, loss: float, note: str = "") -> None:
        """Show that ``done`` steps are done, with the loss and a note."""
        now, values = time.monotonic(), "  ".join(filter(None, [f"loss {loss:.4f}", note]))
        if self._bar is not None:
            self._bar.set_postfix_str(values, refresh=False)
            self._bar.update(done - self._bar.n)
        if now - self._shown > INTERVAL or done == self.steps:
            self._shown = now
            pace = (now - self._started) / (done - self.first)
            left = (self.steps - done) * pace
            self.on_progress(done, self.steps, left)
            if self._bar is None:
                line = f"{self.name} {done}/{self.steps}  {values}  {pace:.3f} s/step"
                print(f"{line}  {left:.0f} s left", flush=True)

    def close(self) -> None:
        """Close the bar and leave it on the terminal."""
        if self._bar is not None:
            self._bar.close()


def peak_memory_mb(device: torch.device | str) -> float:
    """Return the peak memory of this process so far, in MB: GPU memory if it computes on a GPU, else host memory."""
    if torch.device(device).type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1)
