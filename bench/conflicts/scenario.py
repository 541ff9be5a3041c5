"""Scenario ``conflicts``: many conflicts under each policy, and what became of each.

A device makes records and changes or deletes them, then others send changes that they made before they knew
of it. The outcome of each is compared with the oracle: what the device was told, and what the table holds.
Some of those that wait for a person are settled by hand, with each choice in turn.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any, Final, NamedTuple

from bench.conflicts.oracle import POLICIES, Item, Outcome, Policy, Record, outcome
from bench.conflicts.workload import CHANGED_S, MADE_S, Case, case_of, sent
from bench.harness.child import progress
from bench.harness.environment import BenchError, fresh
from bench.harness.stage import Options, Stage, add_tenants, product_stage
from bench.load.simple_device import Message, SimpleDevice, statuses
from bench.report.results import Bar, Figure, Report
from bench.report.statistics import latency_of
from engine.model.domains import DomainPolicy
from storage.postgres.blocking import connected
from storage.postgres.commands import command_database
from storage.stores.policies import PostgresPolicies

SIZES: Final = (500, 50_000)
BATCH: Final = 100
DEVICES: Final = 10
#: How many conflicts that wait for a person are settled by hand.
BY_HAND: Final = 300
_NAMED: Final = 5
_CHOICES: Final = ("server", "client", "merged")


class Found(NamedTuple):
    """What became of the conflicts of one policy. ``settled_us`` are the times of those that were settled."""

    counts: Counter[str]
    settled_us: list[int]
    by_hand_us: list[int]
    wrong: list[str]


async def conflicts(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    if options.url is not None:
        raise BenchError("conflicts need tenants with a policy of their own: leave --url out")
    report = Report(scenario="conflicts", work=_work())
    with fresh(options.settings) as environment:
        async with product_stage(environment, options, "product") as stage:
            for size in SIZES:
                for policy in POLICIES:
                    progress(f"{policy}: {size:,} conflicts")
                    judge(report, policy, size, await _Run(stage, policy, size).run())
            report.logged = dict(stage.server.logged)
    return report


def _work() -> str:
    sizes = " and ".join(f"{size:,}" for size in SIZES)
    return (
        f"{sizes} conflicts under each policy, {DEVICES} devices with {BATCH} items a sync: patches, puts and"
        " deletes, before and after another's change or deletion, of the same fields or others"
    )


def judge(report: Report, policy: Policy, size: int, found: Found) -> None:
    """Add the figures and bars of one policy."""
    name, total = f"{policy}, {size:,}", found.counts.total()
    settled = latency_of(found.settled_us or found.by_hand_us)
    alone = found.counts["resolved"]
    how = "from sending to the answer" if found.settled_us else f"of {len(found.by_hand_us)} by hand"
    times = f"p95 {settled.p95_ms:.1f}, p99 {settled.p99_ms:.1f}, at most {settled.max_ms:.1f} ms"
    report.figures += [
        Figure(f"{name}: settled without a person", 100 * alone / size, "%", f"{size - alone:,} are held"),
        Figure(f"{name}: p50 of the time to settled", settled.p50_ms, "ms", f"{times}, {how}"),
    ]
    report.bars += [
        Bar(f"{name}: conflicts answered", 100 * total / size, "at least", 100, "%"),
        Bar(f"{name}: other outcomes than the contract says", len(found.wrong), "at most", 0, ""),
    ]
    report.remarks += [f"{name}: {sentence}" for sentence in found.wrong[:_NAMED]]


class _Run:
    def __init__(self, stage: Stage, policy: Policy, size: int) -> None:
        self._stage = stage
        self._policy = policy
        self._size = size
        self._tenant = f"conflicts-{policy.replace('_', '-')}-{size}"
        self._cases = [case_of(number) for number in range(size)]
        self._found = Found(Counter(), [], [], [])
        #: What the table has to hold in the end, by number.
        self._stands: dict[int, Record | None] = {}

    async def run(self) -> Found:
        """Make the records, have them conflict, settle some by hand and read the table."""
        add_tenants(self._stage.dsn, [self._tenant])
        chosen = DomainPolicy(self._policy)
        async with command_database(self._stage.dsn) as database:
            await PostgresPolicies(database, {"task": chosen}).set(self._tenant, "task", chosen)
        office = await self._opened("office")
        await self._made(office, "make", lambda case: Item("put", MADE_S, case.made), None)
        await self._made(office, "change", _change, 1)
        office.close()
        devices = [await self._opened(f"phone-{index}") for index in range(DEVICES)]
        await asyncio.gather(*(self._conflict(index, device) for index, device in enumerate(devices)))
        if self._policy == "manual":
            for device in devices:
                await self._settle(device, BY_HAND // DEVICES)
        for device in devices:
            device.close()
        self._found.wrong.extend(self._tables())
        return self._found

    async def _opened(self, name: str) -> SimpleDevice:
        target = self._stage.target
        device = SimpleDevice()
        await device.open(target.host, target.port, target.token(self._tenant, name))
        return device

    async def _made(
        self, office: SimpleDevice, what: str, item: Callable[[Case], Item], base: int | None
    ) -> None:
        for numbers in _batches(range(self._size)):
            items = [sent(f"r{number}", item(self._cases[number]), base) for number in numbers]
            answer = await office.sync(f"{what}-{numbers[0]}", *items)
            if statuses(answer) != {"applied": len(items)}:
                raise BenchError(f"{what}: no conflict can be made of {dict(statuses(answer))}")

    async def _conflict(self, index: int, device: SimpleDevice) -> None:
        for numbers in _batches(range(index, self._size, DEVICES)):
            items = [sent(f"r{number}", self._cases[number].item, 1) for number in numbers]
            began_s = perf_counter()
            answer = await device.sync(f"conflict-{numbers[0]}", *items)
            took_us = int((perf_counter() - began_s) * 1e6)
            if answer["type"] != "synced":
                self._found.wrong.append(f"a sync was answered with {answer['code']}")
                continue
            for number, result in zip(numbers, answer["results"], strict=True):
                self._judge(number, result, took_us)

    def _judge(self, number: int, result: Message, took_us: int) -> None:
        """Compare the answer with the oracle."""
        case, found = self._cases[number], self._found
        expected = outcome(self._policy, case.server, case.item)
        self._stands[number] = expected.data
        found.counts[result["status"]] += 1
        if result["status"] == "resolved":
            found.settled_us.append(took_us)
        if not _as_expected(expected, result):
            found.wrong.append(f"r{number}, {case.item.op}: told {result}, expected {expected}")

    async def _settle(self, device: SimpleDevice, count: int) -> None:
        """Settle some conflicts of a device by hand, with each choice in turn."""
        listed = await device.ask("conflicts", limit=count)
        for place, one in enumerate(listed["conflicts"]):
            choice = _CHOICES[place % len(_CHOICES)]
            merged = {"title": "settled by hand", "number": place}
            data = {"data": merged} if choice == "merged" else {}
            began_s = perf_counter()
            answer = await device.ask(
                "resolve",
                conflict_id=one["conflict_id"],
                choice=choice,
                version=one["server"]["version"],
                changes=one["client"]["changes"],
                **data,
            )
            self._found.by_hand_us.append(int((perf_counter() - began_s) * 1e6))
            number = int(one["record_id"][1:])
            case = self._cases[number]
            sides = {
                "server": case.server.data,
                "client": outcome("client_wins", case.server, case.item).data,
                "merged": merged,
            }
            self._stands[number] = sides[choice]
            if answer["type"] != "resolved" or answer["version"] != one["server"]["version"] + 1:
                self._found.wrong.append(f"r{number}: choice {choice} was answered with {answer}")

    def _tables(self) -> Iterator[str]:
        """Compare what PostgreSQL holds with the oracle."""
        with connected(self._stage.dsn) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT id, data FROM records JOIN tenants USING (tenant_id) WHERE name = %s", (self._tenant,)
            )
            stored: dict[str, Any] = dict(cursor.fetchall())
        for number, expected in self._stands.items():
            if stored.get(f"r{number}", "nothing") != expected:
                yield f"r{number}: the table has {stored.get(f'r{number}')}, expected {expected}"


def _change(case: Case) -> Item:
    return Item("delete", CHANGED_S) if case.change is None else Item("patch", CHANGED_S, case.change)


def _as_expected(expected: Outcome, result: Message) -> bool:
    told = result["status"] == expected.status and result.get("data", expected.data) == expected.data
    return told and (not expected.winners or result.get("winner") in expected.winners)


def _batches(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(numbers), BATCH):
        yield numbers[first : first + BATCH]
