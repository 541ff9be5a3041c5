"""What a request costs is measured between its waits, and paid for by who is known to send it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from engine.runtime.metered import metered
from engine.runtime.unauthenticated_scheduler import UnauthenticatedScheduler
from handlers.http.loop.metering import Bill
from tests.harness.in_process_server import Running, Serve
from tests.harness.raw_http import wired

ADDRESS = "192.0.2.1"


class _Clock:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.spent: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def metered(self, work: Coroutine[Any, Any, Any]) -> Any:
        return metered(work, self, self.spent.append)


async def test_metered_counts_work_and_no_waiting() -> None:
    clock = _Clock()

    async def work() -> str:
        clock.now_s += 1.0
        waited = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(_later, clock, waited)
        clock.now_s += 2.0
        assert await waited == "came"
        clock.now_s += 4.0
        return "done"

    def _later(clock: _Clock, waited: asyncio.Future[str]) -> None:
        clock.now_s += 100.0
        waited.set_result("came")

    assert await clock.metered(work()) == "done"
    assert clock.spent == [3.0, 4.0]


async def test_metered_raises_what_the_work_raises_and_what_it_waits_for() -> None:
    clock = _Clock()

    async def work() -> None:
        clock.now_s += 1.0
        waited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waited.set_exception(LookupError("waited for"))
        try:
            await waited
        finally:
            clock.now_s += 2.0

    with pytest.raises(LookupError, match="waited for"):
        await clock.metered(work())
    assert sum(clock.spent) == 3.0


async def test_metered_work_is_cancelled_with_its_task() -> None:
    clock = _Clock()
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    async def task() -> None:
        await clock.metered(work())

    running = asyncio.create_task(task())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()


class _Scheduler(UnauthenticatedScheduler):
    """Those of a loop that has no other pass."""

    def __init__(self) -> None:
        super().__init__(_Clock())
        self.charged: dict[str, float] = {}

    def worked(self, spent_s: float) -> None:
        """Count nothing."""

    def charge(self, address: str, spent_s: float) -> None:
        self.charged[address] = self.charged.get(address, 0.0) + spent_s


def _bill(address: str | None) -> tuple[Bill, dict[str, float]]:
    turns = _Scheduler()
    bill = Bill(turns, _Clock())
    bill.begin(address)
    return bill, turns.charged


def test_bill_without_a_token_is_charged_to_the_address() -> None:
    bill, charged = _bill(ADDRESS)
    bill.worked(0.25)
    assert charged == {}
    bill.settle()
    assert charged == {ADDRESS: 0.25}


def test_bill_of_a_request_is_charged_to_its_device_with_its_head() -> None:
    bill, charged = _bill(ADDRESS)
    paid: list[float] = []

    def pay(spent_s: float, _: float) -> None:
        paid.append(spent_s)

    bill.worked(0.25)
    bill.charge_to(pay)
    bill.unauthenticated = False
    bill.worked(0.5)
    bill.over()
    bill.worked(0.0005)  # the next head, of whomever
    bill.settle()
    assert (paid, charged) == ([0.25, 0.5], {ADDRESS: 0.0005})


def test_bill_of_a_proxy_is_not_charged() -> None:
    bill, charged = _bill(None)
    bill.worked(0.25)
    bill.settle()
    assert (charged, bill.waits()) == ({}, False)


# -- on a server ------------------------------------------------------------------------------


async def _charged_s(server: Running) -> float:
    page = (await server.get("/metrics")).body.decode()
    (line,) = [line for line in page.splitlines() if line.startswith("tidemark_loop_charged_seconds_total ")]
    return float(line.split()[1])


@pytest.mark.parametrize("path", ["/v1/changes", "/v1/conflicts", "/v1/domains"])
async def test_answer_over_http_is_charged_to_its_device(path: str, serve: Serve) -> None:
    server = await serve()
    before_s = await _charged_s(server)
    assert (await server.get(path)).status == 200
    assert await _charged_s(server) > before_s


async def test_handshake_is_charged_to_its_device(serve: Serve) -> None:
    server = await serve()
    await server.device()
    assert await _charged_s(server) > 0


async def test_request_without_a_valid_token_is_charged_to_no_device(serve: Serve) -> None:
    server = await serve()
    async with wired(server.url) as wire:
        assert (await wire.ask("GET", "/v1/changes", {})).status == 401
    assert await _charged_s(server) == 0
