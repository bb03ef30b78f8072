"""Futures put together: results, errors from every place, and nothing that waits."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from troupe.futures import all_of, then


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
