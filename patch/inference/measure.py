"""Timing of functions on a device. Candidates are interleaved so that drift affects all of them equally."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")

REPEATS = 20
WARMUP = 3


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements.

    Attributes:
        median: the median of all.
        low: first quartile.
        high: third quartile.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of one or more values, with quartiles by linear interpolation."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


class Marks:
    """Time stamps of a device, each taken when all work queued before it has ended.

    On `cuda` they are events, which need no synchronization between them; on the CPU, where calls block, clock times.
    """

    def __init__(self, device: torch.device | str = "cpu", clock: Callable[[], float] = time.perf_counter) -> None:
        self._cuda, self._clock = torch.device(device).type == "cuda", clock
        self._points: list = []

    def mark(self) -> None:
        """Take a time stamp."""
        if not self._cuda:
            self._points.append(self._clock())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._points.append(event)

    def seconds(self) -> list[float]:
        """Return the seconds between each time stamp and the next."""
        pairs = zip(self._points, self._points[1:], strict=False)
        if not self._cuda:
            return [after - before for before, after in pairs]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairs]


def interleaved(
    functions: Mapping[str, Callable[[], T]], repeats: int = REPEATS, warmup: int = 1
) -> dict[str, list[T]]:
    """Call functions in turn, A, B, C, A, B, C, ..., and return the results of each, call by call.

    Args:
        functions: name -> function.
        repeats: number of calls of each whose results are returned.
        warmup: number of calls of each before those.
    """
    for _ in range(warmup):
        for function in functions.values():
            function()
    found: dict[str, list[T]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            found[name].append(function())
    return found


def timed(
    functions: Mapping[str, Callable[[], object]],
    repeats: int = REPEATS,
    warmup: int = WARMUP,
    device: torch.device | str = "cpu",
    graphs: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Spread]:
    """Return the seconds that a call of each function takes.

    Args:
        functions: name -> function.
        repeats: number of timed calls of each.
        warmup: number of calls of each before those.
        device: device that the functions compute on.
        graphs: on `cuda`, capture each in a CUDA graph, so that launching its kernels does not count; a function that
            cannot be captured is called directly, and a message is printed.
        clock: clock of the CPU, in seconds.
    """
    if graphs and torch.device(device).type == "cuda":
        functions = {name: captured(function, name) or function for name, function in functions.items()}

    def clocked(function: Callable[[], object]) -> Callable[[], float]:
        def call() -> float:
            marks = Marks(device, clock)
            marks.mark()
            function()
            marks.mark()
            return marks.seconds()[0]

        return call

    found = interleaved({name: clocked(function) for name, function in functions.items()}, repeats, warmup)
    return {name: Spread.of(seconds) for name, seconds in found.items()}


def captured(function: Callable[[], object], what: str) -> Callable[[], None] | None:
    """Capture a function on `cuda` as a CUDA graph; if that is impossible, print the reason and return None.

    Args:
        function: reads and writes the same tensors at every call.
        what: name of the function in the message.
    """
    try:
        # Capturing requires warm-up calls on another stream, so that lazy initialization is over before.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
    except (RuntimeError, ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"{what}: not captured in a CUDA graph, kernels are launched one by one ({reason})", flush=True)
        torch.cuda.synchronize()
        return None
    return graph.replay
