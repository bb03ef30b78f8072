"""Workers as small as can be; a module of their own, so that Ray's processes can import them."""

from __future__ import annotations

import asyncio
import os
import sys
import time

from troupe.errors import RewardError


class Counter:
    """Counts on its own rank."""

    def __init__(self, *, start: int) -> None:
        if start < 0:
            raise ValueError("a counter starts at 0 or above")
        self.value = start
        self.closed = False

    def add(self, amount: int, *, times: int = 1) -> int:
        self.value += amount * times
        return self.value

    def role(self) -> str | None:
        return os.environ.get("TROUPE_ROLE")

    def refuse(self) -> None:
        raise RewardError(f"the judge of {self.value} refused")

    def divide(self, by: int) -> float:
        return self.value / by

    def die_at(self, value: int) -> int:
        if self.value == value:
            os._exit(7)
        return self.value

    def die_of(self, number: int) -> None:
        print("its last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), number)
        time.sleep(60)

    def wait_at(self, value: int, seconds: float) -> int:
        if self.value == value:
            time.sleep(seconds)
        return self.value

    def close(self) -> None:
        self.closed = True


class AsyncCounter:
    """Its calls meet: each waits until as many as it was told to are there."""

    def __init__(self) -> None:
        self.present = 0

    async def meet(self, others: int) -> int:
        self.present += 1
        while self.present < others:
            await asyncio.sleep(0.01)
        return self.present

    async def refuse(self) -> None:
        raise RewardError("the judge refused")
