"""Futures put together: results, errors from every place, and nothing that waits."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from troupe.processes.futures import all_of, then, those_done, wait_all


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
