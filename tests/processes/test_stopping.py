"""The first signal lets a step finish, the second ends the run, and afterwards signals are as they were."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from troupe.processes.stopping import (
    INTERRUPTIONS,
    NOTICE,
    Interrupted,
    StopSignals,
    keeping_sigterm,
    sigterm_interrupts,
)

BOTH = (signal.SIGINT, signal.SIGTERM)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in BOTH]


@pytest.fixture(autouse=True)
def before() -> Iterator[list[object]]:
    """The handlers of this process, put back whatever a test leaves."""
    found = handlers()
    yield found
    for number, handler in zip(BOTH, found, strict=True):
        signal.signal(number, handler)  # type: ignore[arg-type]


@pytest.fixture
def signals() -> Iterator[StopSignals]:
    signals = StopSignals()
    signals.install()
    yield signals
    signals.restore()


# -- while a run is open -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", BOTH)
def test_before_the_first_step_one_signal_ends_the_run(signals: StopSignals, number: int) -> None:
    with pytest.raises(Interrupted) as raised:
        send(number)
    assert (raised.value.number, raised.value.status) == (number, 128 + number)
    assert raised.value.status in INTERRUPTIONS
    assert signals.received is None  # no step is to be finished


@pytest.mark.parametrize(("first", "second"), [BOTH, BOTH[::-1], BOTH[:1] * 2])
def test_while_steps_run_the_first_signal_is_noted_and_the_second_ends_the_run(
    signals: StopSignals, first: int, second: int, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    signals.patient = True
    send(first)
    assert signals.received == first
    assert capfdbinary.readouterr().err == NOTICE
    with pytest.raises(Interrupted) as raised:
        send(second)
    assert raised.value.number == second
    assert capfdbinary.readouterr().err == b""  # it is told once


def test_the_handlers_come_back_also_where_a_library_took_one_in_between(before: list[object]) -> None:
    signals = StopSignals()
    signals.install()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as ray.init does
    signals.install()
    signals.patient = True
    send(signal.SIGTERM)
    assert signals.received == signal.SIGTERM
    signals.restore()
    assert handlers() == before


def test_only_the_main_thread_takes_signals(before: list[object]) -> None:
    signals = StopSignals()
    thread = threading.Thread(target=signals.install)
    thread.start()
    thread.join()
    assert handlers() == before
    signals.restore()
    assert handlers() == before


# -- around a program ----------------------------------------------------------------------------------------------


def test_sigterm_ends_a_block_as_ctrl_c_does_and_only_there(before: list[object]) -> None:
    with pytest.raises(Interrupted) as raised, sigterm_interrupts():
        send(signal.SIGTERM)
    assert isinstance(raised.value, KeyboardInterrupt)
    assert raised.value.status == 143
    assert handlers() == before


@pytest.mark.parametrize("fails", [False, True])
def test_a_library_that_takes_sigterm_gives_it_back_also_when_it_fails(before: list[object], fails: bool) -> None:
    with pytest.raises(ConnectionError) if fails else contextlib.nullcontext(), keeping_sigterm():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if fails:
            raise ConnectionError("no cluster")
    assert handlers() == before


def test_in_another_thread_both_leave_the_handlers_alone(before: list[object]) -> None:
    seen: list[list[object]] = []

    def work() -> None:
        with sigterm_interrupts(), keeping_sigterm():
            seen.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_an_interruption_keeps_its_signal_and_takes_advice() -> None:
    advised = Interrupted.by(Interrupted(signal.SIGTERM), "it goes on with: x")
    assert (advised.status, str(advised)) == (143, "it goes on with: x")
    of_a_terminal = Interrupted.by(KeyboardInterrupt())
    assert (of_a_terminal.status, str(of_a_terminal)) == (130, "")
