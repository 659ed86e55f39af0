"""What a scheduler's signals mean: save what is done and leave, to be started again and go on."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# SLURM sends a signal of choice before the time limit, SIGTERM when it wants the node back.
STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# Of these, the ones that can wait. SIGTERM ends a process that has nothing to save yet.
HELD = (signal.SIGUSR1, signal.SIGUSR2)
# Distinct from every other exit, so that a scheduler can requeue: EX_TEMPFAIL of sysexits.h.
EXIT_RESUMABLE = 75


class StopRequest:
    """Whether the process was asked to stop."""

    requested = False


_early = StopRequest()


def hold_signals() -> None:
    """From now on SIGUSR1 and SIGUSR2 wait for a `stop_request` or `leave_when_asked`, and do nothing else.

    So a stage that still loads its model is not ended by them, and loses none. Those that have come while the
    parent process had them blocked count. All other signals come in, whatever it blocked.
    """
    _early.requested = False

    def note(number: int, frame: object) -> None:
        _early.requested = True

    for number in HELD:
        signal.signal(number, note)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def take_held() -> bool:
    """Whether a held signal has come; it counts once."""
    requested, _early.requested = _early.requested, False
    return requested


def ignore_signals() -> None:
    """From now on stop signals do nothing: the process is leaving already, and several may come."""
    for number in STOP:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Within the block, a stop signal only sets `requested`; one that was held has set it."""
    request = StopRequest()

    def note() -> None:
        request.requested = True

    with _listening(note):
        yield request


@contextmanager
def leave_when_asked(message: str) -> Iterator[None]:
    """Within the block, the first stop signal ends the process with `EXIT_RESUMABLE` at once, and says ``message``."""
    request = StopRequest()

    def leave() -> None:
        if not request.requested:
            request.requested = True
            sys.exit(EXIT_RESUMABLE)

    try:
        with _listening(leave):
            yield
    except SystemExit:
        # Not in the handler, which may come in the middle of another line.
        if request.requested:
            print(message, flush=True)
        raise


@contextmanager
def _listening(action: Callable[[], None]) -> Iterator[None]:
    previous = {number: signal.signal(number, lambda received, frame: action()) for number in STOP}
    try:
        if take_held():
            action()
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
