"""Signals that mean "save and leave" are neither lost nor deadly before there is something to save."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest

from patch.distributed.agent import FORWARDED, forward_signals
from patch.distributed.signals import (
    EXIT_RESUMABLE,
    HELD,
    STOP,
    hold_signals,
    ignore_signals,
    leave_when_asked,
    stop_request,
)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Handlers and mask are afterwards what they were."""
    handlers, mask = (
        {number: signal.getsignal(number) for number in FORWARDED},
        signal.pthread_sigmask(signal.SIG_BLOCK, ()),
    )
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
    """Blocked by who started it, and ignored by a shell above; in a process without other threads, as one begins."""
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, {number, signal.SIGTERM})
        signal.signal(number, signal.SIG_IGN)
        os.kill(os.getpid(), number)
        hold_signals()
        unblocked = not signal.pthread_sigmask(signal.SIG_BLOCK, ())
        with stop_request() as stop:
            os._exit(0 if stop.requested and unblocked else 1)
    assert os.waitpid(pid, 0)[1] == 0


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
    assert signal.getsignal(number) == signal.SIG_IGN


@pytest.mark.parametrize(
    ("number", "arrives"),
    [
        (signal.SIGUSR1, signal.SIGUSR1),
        (signal.SIGUSR2, signal.SIGUSR2),
        (signal.SIGTERM, signal.SIGHUP),
        (signal.SIGINT, signal.SIGHUP),
    ],
)
def test_signals_are_passed_on(number: int, arrives: int) -> None:
    """SIGHUP stands for what the caller makes of those that are not passed on as they are."""
    child = subprocess.Popen(["sleep", "60"])
    timer = threading.Timer(0.2, os.kill, (os.getpid(), number))
    timer.start()
    forward_signals(lambda: child.poll() is not None, lambda: [child.pid], signal.SIGHUP)
    assert child.returncode == -arrives
    os.kill(os.getpid(), number)  # late: nothing happens


def test_a_held_signal_is_passed_on_when_there_is_somebody() -> None:
    hold_signals()
    os.kill(os.getpid(), signal.SIGUSR2)
    children: list[subprocess.Popen] = []
    timer = threading.Timer(0.3, lambda: children.append(subprocess.Popen(["sleep", "60"])))
    timer.start()
    forward_signals(
        lambda: bool(children) and children[0].poll() is not None, lambda: [c.pid for c in children], signal.SIGTERM
    )
    assert children[0].returncode == -signal.SIGUSR1
