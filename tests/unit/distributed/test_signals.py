"""Tests of stop signals: none is lost or ends a process too early, and all processes receive them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from patch.distributed import launch
from patch.distributed.launch import FORWARDED, run_processes
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
    """Restore the signal handlers and the signal mask."""
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
    """The parent had blocked the signal and a shell had ignored it. A new process has no other threads."""
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
def test_signals_are_forwarded(number: int, arrives: int) -> None:
    """The launcher replaces SIGTERM and SIGINT by the given signal, here SIGHUP."""
    threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
    assert run_processes(["sleep", "60"], [os.environ] * 2, signal.SIGHUP) == -arrives
    os.kill(os.getpid(), number)  # late: nothing happens


def test_a_held_signal_is_forwarded() -> None:
    hold_signals()
    os.kill(os.getpid(), signal.SIGUSR2)
    assert run_processes(["sleep", "60"], [os.environ], signal.SIGTERM) == -signal.SIGUSR1


def test_a_failure_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others get SIGTERM, and SIGKILL if they ignore it; the exit code is that of the first failure."""
    monkeypatch.setattr(launch, "GRACE", 1)
    command = ["sh", "-c", "trap '' TERM; if test $FAILS; then sleep 0.3; exit 3; fi; exec sleep 60"]
    began = time.monotonic()
    environment = {"PATH": os.environ["PATH"]}
    assert run_processes(command, [environment, {**environment, "FAILS": "1"}], signal.SIGTERM) == 3
    assert time.monotonic() - began < 20
    assert run_processes(["true"], [environment] * 2, signal.SIGTERM) == 0
