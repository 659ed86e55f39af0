"""Signals that mean "save and leave" are neither lost nor deadly before there is something to save."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from patch.signals import EXIT_RESUMABLE, HELD, STOP, hold_signals, ignore_signals, leave_when_asked, stop_request


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Handlers and mask are afterwards what they were."""
    handlers, mask = {number: signal.getsignal(number) for number in STOP}, signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@pytest.mark.parametrize("number", STOP)
def test_a_request_is_noted(number: int) -> None:
    handlers = [signal.getsignal(known) for known in STOP]
    with stop_request() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
    assert [signal.getsignal(known) for known in STOP] == handlers


@pytest.mark.parametrize("number", HELD)
def test_a_signal_waits_for_the_request(number: int) -> None:
    hold_signals()
    os.kill(os.getpid(), number)
    with stop_request() as stop:
        assert stop.requested
    os.kill(os.getpid(), number)
    with pytest.raises(SystemExit), leave_when_asked("stopped"):
        pytest.fail("it should have left")
    with stop_request() as stop:
        assert not stop.requested, "each is answered once"


@pytest.mark.parametrize("number", HELD)
def test_a_signal_that_came_before_this_process_had_begun(number: int) -> None:
    """Blocked by who started it, and ignored by a shell above."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {number, signal.SIGTERM})
    signal.signal(number, signal.SIG_IGN)
    os.kill(os.getpid(), number)
    hold_signals()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    with stop_request() as stop:
        assert stop.requested


@pytest.mark.parametrize("number", STOP)
def test_leaving_at_once(number: int, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end, leave_when_asked("stopped"):
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), number)  # a second one does not disturb the leaving
    assert end.value.code == EXIT_RESUMABLE == 75
    assert capsys.readouterr().out == "stopped\n"


def test_other_ways_out_say_nothing(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit), leave_when_asked("stopped"):
        raise SystemExit(3)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("number", STOP)
def test_who_leaves_is_not_disturbed(number: int) -> None:
    ignore_signals()
    os.kill(os.getpid(), number)
