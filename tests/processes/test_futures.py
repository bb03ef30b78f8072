"""Futures put together: results, errors from every place, and nothing that waits."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from troupe.processes.futures import all_of, contained, run_aside, then, those_done, wait_all


def test_a_result_goes_on_through_a_function_and_through_a_future_that_it_returns() -> None:
    first: Future[int] = Future()
    second: Future[str] = Future()
    doubled, followed = then(first, lambda value: 2 * value), then(first, lambda value: second)
    assert not doubled.done()
    first.set_result(21)
    assert doubled.result(0) == 42
    assert not followed.done()
    second.set_result("there")
    assert followed.result(0) == "there"


def test_an_error_passes_through_and_one_of_the_function_is_the_answer() -> None:
    failed: Future[int] = Future()
    failed.set_exception(ValueError("before"))
    calls: list[int] = []
    with pytest.raises(ValueError, match="before"):
        then(failed, calls.append).result(0)
    assert calls == []
    done: Future[int] = Future()
    done.set_result(0)
    with pytest.raises(ZeroDivisionError):
        then(done, lambda value: 1 / value).result(0)
    with pytest.raises(ValueError, match="before"):
        then(done, lambda value: failed).result(0)


def test_all_results_come_in_order_and_the_first_failure_of_the_list_wins() -> None:
    futures: list[Future[int]] = [Future() for _ in range(3)]
    whole = all_of(futures)
    for index in (2, 0):
        futures[index].set_result(index)
    assert not whole.done()
    futures[1].set_result(1)
    assert whole.result(0) == [0, 1, 2]
    broken: list[Future[int]] = [Future() for _ in range(2)]
    whole = all_of(broken)
    broken[1].set_exception(KeyError("later"))
    broken[0].set_exception(ValueError("earlier"))
    with pytest.raises(ValueError, match="earlier"):
        whole.result(0)


def test_a_wait_names_what_is_late_and_raises_the_first_failure_as_it_is_explained() -> None:
    done, open_, failed = Future[int](), Future[int](), Future[int]()
    done.set_result(1)
    failed.set_exception(KeyError("x"))
    assert wait_all([done, done], 0, late=lambda _: AssertionError()) == [1, 1]
    with pytest.raises(TimeoutError, match=r"\[1, 2\]"):
        wait_all([done, open_, open_], 0.05, late=lambda positions: TimeoutError(str(positions)))
    with pytest.raises(ValueError, match="because of 'x'"):
        wait_all(
            [open_, failed], 600, late=lambda _: AssertionError(), cause=lambda error: ValueError(f"because of {error}")
        )
    assert those_done([done, open_, failed], 0.05) == {0: done, 2: failed}


def test_a_wait_that_has_become_pointless_ends() -> None:
    looks = []

    def look() -> None:
        looks.append(1)
        if len(looks) == 2:
            raise ConnectionError("the engine is gone")

    with pytest.raises(ConnectionError):
        wait_all([Future[int]()], 600, late=lambda _: AssertionError(), look=look)


def test_nothing_to_wait_for_is_no_wait() -> None:
    assert wait_all([], 600, late=lambda _: AssertionError()) == []
    assert those_done([], 600) == {}


def test_a_failure_ends_a_wait_for_those_that_are_done() -> None:
    open_, failed = Future[int](), Future[int]()
    threading.Timer(0.05, failed.set_exception, [KeyError("x")]).start()
    assert those_done([open_, failed], 600, until_failure=True) == {1: failed}


# -- in a thread ---------------------------------------------------------------------------------------------------


def test_a_call_in_a_thread_gives_its_result_while_the_loop_goes_on() -> None:
    async def both() -> tuple[str, str]:
        heard = threading.Event()

        async def speak() -> str:
            heard.set()
            return "the loop"

        def wait() -> str:
            assert heard.wait(10)  # never, if the loop stood still
            return threading.current_thread().name

        name, said = await asyncio.gather(run_aside(wait, name="aside"), speak())
        return name, said

    assert asyncio.run(both()) == ("aside", "the loop")


def stop_iterating() -> None:
    next(iter([]))


def leave() -> None:
    sys.exit("no map")


def divide() -> None:
    1 / 0  # noqa: B018


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (divide, ZeroDivisionError, "division by zero"),
        (stop_iterating, RuntimeError, r"it raised StopIteration\(\)"),  # asyncio's futures take none
        (leave, RuntimeError, r"it raised SystemExit\('no map'\)"),  # and this would end the loop
    ],
)
def test_whatever_a_call_in_a_thread_raises_is_an_error_that_can_be_caught(
    call: Callable[[], Any], error: type[Exception], sentence: str
) -> None:
    async def caught() -> str:
        with pytest.raises(error, match=sentence):
            await asyncio.wait_for(run_aside(call, name="aside"), 10)
        return "and the loop goes on"

    assert asyncio.run(caught()) == "and the loop goes on"


def test_a_call_that_was_given_up_may_end_later_and_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    released, ended = threading.Event(), threading.Event()

    def slow() -> None:
        released.wait(10)
        ended.set()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run_aside(slow, name="aside"), 0.05)
        released.set()
        assert ended.wait(10)
        await asyncio.sleep(0.05)  # what it delivers has been seen

    asyncio.run(give_up())
    assert caplog.records == []


def test_a_call_that_never_returns_keeps_no_process_from_ending() -> None:
    source = (
        "import asyncio, threading\n"
        "from troupe.processes.futures import run_aside\n"
        "async def main():\n"
        "    try:\n"
        "        await asyncio.wait_for(run_aside(threading.Event().wait, name='aside'), 0.05)\n"
        "    except TimeoutError:\n"
        "        print('late')\n"
        "asyncio.run(main())"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("late\n", "")


# -- code that nobody here has read ----------------------------------------------------------------------------------


async def exits() -> None:
    leave()


async def cancels_itself() -> None:
    helper = asyncio.ensure_future(asyncio.sleep(600))
    await asyncio.sleep(0)
    helper.cancel()
    await helper


@pytest.mark.parametrize(
    ("call", "sentence"),
    [(exits, r"it raised SystemExit\('no map'\)"), (cancels_itself, r"it raised CancelledError\(\)")],
)
def test_what_would_end_the_loop_or_its_neighbours_is_an_error_of_the_call(
    call: Callable[[], Any], sentence: str
) -> None:
    async def beside() -> str:
        await asyncio.sleep(0.02)
        return "goes on"

    async def both() -> list[Any]:
        return await asyncio.gather(contained(call()), beside(), return_exceptions=True)

    error, other = asyncio.run(both())
    assert isinstance(error, RuntimeError)
    assert re.fullmatch(sentence, str(error))
    assert other == "goes on"


def test_our_own_cancellation_and_deadline_stay_what_they_are() -> None:
    async def late() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await contained(asyncio.sleep(600))
        task = asyncio.ensure_future(contained(asyncio.sleep(600)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await contained(asyncio.sleep(0, "a result")) == "a result"

    asyncio.run(late())
