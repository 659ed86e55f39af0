"""Handling of a scheduler's signals: save the state and exit, so that the stage can be started again and resume."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# SLURM sends a signal of choice before the time limit, SIGTERM when it wants the node back.
STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# The stop signals that can be held. SIGTERM ends a process that has nothing to save yet.
HELD = (signal.SIGUSR1, signal.SIGUSR2)
# Distinct from every other exit code, so that a scheduler can requeue: EX_TEMPFAIL of sysexits.h.
EXIT_RESUMABLE = 75


class StopRequest:
    """Flag that is set when the process was asked to stop."""

    requested = False


_held = StopRequest()


def hold_signals() -> None:
    """Hold SIGUSR1 and SIGUSR2 for a later `stop_request` or `leave_when_asked`.

    They then neither end a stage that still loads its model nor get lost. Signals that arrived while the parent
    process had blocked them count as well. All other signals are unblocked, even if the parent blocked them.
    """
    _held.requested = False
    for number in HELD:
        signal.signal(number, lambda *_: setattr(_held, "requested", True))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def take_held() -> bool:
    """Return whether a held signal has come, and clear it."""
    requested, _held.requested = _held.requested, False
    return requested


def ignore_signals() -> None:
    """Ignore stop signals from now on: the process is leaving already, and several may come."""
    for number in STOP:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_request(leave: bool = False) -> Iterator[StopRequest]:
    """Make stop signals within the block set `requested`; a signal held before the block sets it at once.

    Args:
        leave: exit with `EXIT_RESUMABLE` at the first signal.
    """
    request = StopRequest()

    def note(*_: object) -> None:
        first, request.requested = not request.requested, True
        if leave and first:
            sys.exit(EXIT_RESUMABLE)

    previous = {number: signal.signal(number, note) for number in STOP}
    try:
        if take_held():
            note()
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def leave_when_asked(message: str) -> Iterator[None]:
    """Exit with `EXIT_RESUMABLE` and print ``message`` at the first stop signal within the block."""
    try:
        with stop_request(leave=True):
            yield
    except SystemExit as stop:
        # Not in the handler, which may interrupt another line of output.
        if stop.code == EXIT_RESUMABLE:
            print(message, flush=True)
        raise
