"""Scenario ``conflicts``: many conflicts under each policy and by domain, and what became of each.

A device makes records and changes or deletes them, then others send changes that they made before they knew
of it. The outcome of each is compared with the oracle: what the device was told, and what the table holds.
Some of those that wait for a person are settled by hand, with each choice in turn.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from time import perf_counter
from typing import Any, Final, Literal, NamedTuple

from bench.conflicts.oracle import POLICIES, Item, Outcome, Record, Server, outcome, patched
from bench.harness.environment import BenchError
from bench.harness.load_run import Target
from bench.harness.progress import progress
from bench.harness.sealed import open_tables
from bench.harness.stage import Options, add_tenants, staged
from bench.load.simple_device import Message, SimpleDevice, statuses
from bench.report.results import Bar, Figure, Report
from bench.report.statistics import latency_of, over
from engine.model.domains import DomainPolicy
from storage.postgres.blocking import connected
from storage.postgres.commands import command_database
from storage.stores.policies import PostgresPolicies

SIZES: Final = (500, 50_000)
#: Items of a sync that makes records, and of one of a device by the number of conflicts.
BATCH: Final = 100
_SYNC_ITEMS: Final = {500: 10}
DEVICES: Final = 10
#: How many conflicts that wait for a person are settled by hand.
BY_HAND: Final = 300
_NAMED: Final = 5
#: How often the smaller number of conflicts is made: the time to settled is of all rounds.
_ROUNDS: Final = 3
#: The policies of a tenant that chose none.
DELIVERED: Final[Mapping[str, DomainPolicy]] = {
    "task": DomainPolicy("field_merge"),
    "work_order": DomainPolicy("field_merge"),
    "attendance": DomainPolicy("server_wins"),
    "ticket": DomainPolicy("preserve_escalation"),
    "journal": DomainPolicy("client_wins"),
}
#: Of a tenant that leaves to a person what one domain cannot merge.
WITH_A_PERSON: Final = {**DELIVERED, "work_order": DomainPolicy("field_merge", "manual")}
#: The statuses that records of a domain have before and after the other change: a device may lead back to the
#: first one, which a whole ``put`` does.
_STATUSES: Final = {
    "task": ("ASSIGNED", "INPROGRESS"),
    "work_order": ("in_progress", "paused"),
    "attendance": ("PENDING", "VERIFIED"),
    "ticket": ("NEW", "OPEN"),
    "journal": ("written", "read"),
}
_LOGGED: Final = (
    "SELECT count(*), count(*) FILTER (WHERE outcome <> 'open' AND settled_by IS NULL)"
    " FROM conflict_resolution_log JOIN tenants USING (tenant_id) WHERE name = %s"
)
_CHOICES: Final = ("server", "client", "merged")

#: Seconds after midnight of the day that all is dated: when a record was made, and when it was changed.
_MADE_S, _CHANGED_S = 3600, 7200
#: The device's change is so much earlier or later than the other one's.
_APART_S: Final = 1800
_OPS: Final[tuple[Literal["patch", "put", "put all", "delete"], ...]] = ("patch", "put", "put all", "delete")
#: Kind of item; later than the other change; on the same field; on a tombstone, which no delete meets.
VARIANTS: Final = tuple(
    (op, later, same_field, deleted)
    for op, later, same_field, deleted in product(_OPS, (False, True), (False, True), (False, True))
    if not (op == "delete" and deleted)
)


class Case(NamedTuple):
    """One conflict: the record as it was made, another device's change of it, and the item that meets it."""

    domain: str
    made: Record
    change: Item
    server: Server
    item: Item


def case_of(number: int, domains: Sequence[str] = ("task",)) -> Case:
    """Make conflict ``number``, every kind in turn in each domain; any two differ in their data."""
    turn, place = divmod(number, len(domains))
    op, later, same_field, deleted = VARIANTS[turn % len(VARIANTS)]
    before, after = _STATUSES[domains[place]]
    made = {
        "title": f"Check pump {number}",
        "note": "as it was made",
        "place": "gate B",
        "status": before,
        "escalation_level": 0,
    }
    if deleted:
        change, server = Item("delete", _CHANGED_S), Server(None, _CHANGED_S, frozenset(), made)
    else:
        fields = {"note": f"changed at the office {number}", "status": after, "escalation_level": 2}
        change = Item("patch", _CHANGED_S, fields)
        server = Server(patched(made, fields), _CHANGED_S, frozenset(fields))
    at_s = _CHANGED_S + (_APART_S if later else -_APART_S)
    mine: Record = {"note" if same_field else "place": f"changed in the field {number}"}
    if same_field:
        mine["escalation_level"] = 1
    items = {
        "patch": Item("patch", at_s, mine),
        "put": Item("put", at_s, {**made, **mine}, tuple(mine)),
        "put all": Item("put", at_s, {**made, **mine}),
        "delete": Item("delete", at_s),
    }
    return Case(domains[place], made, change, server, items[op])


def _sent(domain: str, record_id: str, item: Item, base: int | None) -> Message:
    """Write an item as the contract has it."""
    at = f"2026-03-01T{item.at_s // 3600:02}:{item.at_s // 60 % 60:02}:{item.at_s % 60:02}Z"
    found: Message = {"domain": domain, "id": record_id, "op": item.op, "base": base, "at": at}
    if item.op != "delete":
        found["data"] = item.data
    if item.changed is not None:
        found["changed"] = list(item.changed)
    return found


class Found(NamedTuple):
    """What became of the conflicts of one policy. ``settled_us`` are the times of those that were settled."""

    counts: Counter[str]
    settled_us: list[int]
    by_hand_us: list[int]
    wrong: list[str]


async def conflicts(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    measured = SIZES[:1] if options.suite else SIZES
    sizes = " and ".join(f"{size:,}" for size in measured)
    report = Report(
        scenario="conflicts",
        work=f"{sizes} conflicts under each policy, {DEVICES} devices with 10 or {BATCH} items a sync:"
        " patches, puts and deletes, before and after another's change or deletion, of the same fields or"
        " others",
    )
    least, every = measured[0], list[Found]()
    async with staged(options, report.logged) as target:
        for size in reversed(measured):
            for policy, number in product(POLICIES, range(_ROUNDS if size == least else 1)):
                progress(f"{policy}: {size:,} conflicts")
                found = await _Run(
                    target, f"{policy}-{size}-{number}", {"task": DomainPolicy(policy)}, size
                ).run()
                if not number:
                    judge(report, policy, size, found)
                if size == least:
                    every.append(found)
        for name, policies in (("as delivered", DELIVERED), ("with a person", WITH_A_PERSON)):
            progress(f"policies {name}: {least:,} conflicts")
            whole = await _Run(target, name, policies, least, chosen=policies is not DELIVERED).run()
            judge(report, name, least, whole)
            every.append(whole)
        sum_up(report, least, every, _logged(target.dsn, "as-delivered"))
    return report


def _logged(dsn: str, tenant: str) -> tuple[int, int]:
    """Count a tenant's conflicts in the log, and those that no person settled or is to settle."""
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(_LOGGED, (tenant,))
        ((every, alone),) = cursor.fetchall()
    return every, alone


def sum_up(report: Report, size: int, every: Sequence[Found], logged: tuple[int, int]) -> None:
    """Add the figures of all runs with so many conflicts, and of the log of a tenant that chose no policy."""
    wrong = sum(len(found.wrong) for found in every)
    settled_us = [took_us for found in every for took_us in found.settled_us]
    mean_ms = over(sum(settled_us) / 1000, len(settled_us))
    domains = f"of {logged[0]:,} in the log, policies as delivered"
    report.figures += [
        Figure("outcomes as the policy says", 100 - 100 * wrong / (len(every) * size), "%"),
        Figure("settled without a person", 100 * over(logged[1], logged[0]), "%", domains),
        Figure(
            "average time to settled", mean_ms, "ms", f"from sending to the answer, of {len(settled_us):,}"
        ),
    ]


def judge(report: Report, policy: str, size: int, found: Found) -> None:
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
        Bar(f"{name}: conflicts answered", 100 * total / size, "at least", 100, "%", must=True),
        Bar(f"{name}: other outcomes than the contract says", len(found.wrong), "at most", 0, "", must=True),
    ]
    report.remarks += [f"{name}: {sentence}" for sentence in found.wrong[:_NAMED]]


class _Run:
    """Conflicts of one tenant. ``chosen`` is False for one whose policies are those as delivered."""

    def __init__(
        self,
        target: Target,
        tenant: str,
        policies: Mapping[str, DomainPolicy],
        size: int,
        *,
        chosen: bool = True,
    ) -> None:
        self._target = target
        self._tenant = tenant.replace("_", "-").replace(" ", "-")
        self._policies = policies
        self._chosen = chosen
        self._cases = [case_of(number, tuple(policies)) for number in range(size)]
        self._found = Found(Counter(), [], [], [])
        #: What the table has to hold in the end, by number.
        self._stands: dict[int, Record | None] = {}

    async def run(self) -> Found:
        """Make the records, have them conflict, settle some by hand and read the table."""
        add_tenants(self._target.dsn, [self._tenant])
        if self._chosen:
            async with command_database(self._target.dsn) as database:
                policies = PostgresPolicies(database, self._policies)
                for domain, policy in self._policies.items():
                    await policies.set(self._tenant, domain, policy)
        office = await self._opened("office")
        await self._made(office, "make", lambda case: Item("put", _MADE_S, case.made), None)
        await self._made(office, "change", lambda case: case.change, 1)
        office.close()
        devices = [await self._opened(f"phone-{index}") for index in range(DEVICES)]
        await asyncio.gather(*(self._conflict(index, device) for index, device in enumerate(devices)))
        for device in devices:
            if self._policies == {"task": DomainPolicy("manual")}:
                await self._settle(device, BY_HAND // DEVICES)
            device.close()
        self._found.wrong.extend(self._tables())
        return self._found

    async def _opened(self, name: str) -> SimpleDevice:
        target, device = self._target, SimpleDevice()
        await device.open(target.host, target.port, target.token(self._tenant, name))
        return device

    async def _made(
        self, office: SimpleDevice, what: str, item: Callable[[Case], Item], base: int | None
    ) -> None:
        for numbers in _batches(range(len(self._cases))):
            cases = [(number, self._cases[number]) for number in numbers]
            items = [_sent(case.domain, f"r{number}", item(case), base) for number, case in cases]
            answer = await office.sync(f"{what}-{numbers[0]}", *items)
            if statuses(answer) != {"applied": len(items)}:
                raise BenchError(f"{what}: no conflict can be made of {dict(statuses(answer))}")

    async def _conflict(self, index: int, device: SimpleDevice) -> None:
        items = _SYNC_ITEMS.get(len(self._cases), BATCH)
        for numbers in _batches(range(index, len(self._cases), DEVICES), items):
            cases = [(number, self._cases[number]) for number in numbers]
            sent = [_sent(case.domain, f"r{number}", case.item, 1) for number, case in cases]
            began_s = perf_counter()
            answer = await device.sync(f"conflict-{numbers[0]}", *sent)
            took_us = int((perf_counter() - began_s) * 1e6)
            if answer["type"] != "synced":
                self._found.wrong.append(f"a sync was answered with {answer['code']}")
                continue
            for number, result in zip(numbers, answer["results"], strict=True):
                self._judge(number, result, took_us)

    def _judge(self, number: int, result: Message, took_us: int) -> None:
        """Compare the answer with the oracle."""
        case, found = self._cases[number], self._found
        policy = self._policies[case.domain]
        expected = outcome(policy.policy, case.server, case.item, policy.fallback)
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
            choice, number = _CHOICES[place % len(_CHOICES)], int(one["record_id"][1:])
            merged, case = {"title": "settled by hand", "number": place}, self._cases[number]
            began_s = perf_counter()
            answer = await device.ask(
                "resolve",
                conflict_id=one["conflict_id"],
                choice=choice,
                version=one["server"]["version"],
                changes=one["client"]["changes"],
                **({"data": merged} if choice == "merged" else {}),
            )
            self._found.by_hand_us.append(int((perf_counter() - began_s) * 1e6))
            mine = outcome("client_wins", case.server, case.item).data
            self._stands[number] = {"server": case.server.data, "client": mine, "merged": merged}[choice]
            if answer["type"] != "resolved" or answer["version"] != one["server"]["version"] + 1:
                self._found.wrong.append(f"r{number}: choice {choice} was answered with {answer}")

    def _tables(self) -> Iterator[str]:
        """Compare what PostgreSQL holds with the oracle."""
        with connected(self._target.dsn) as connection, connection.cursor() as cursor:
            open_tables(cursor, self._target.dsn)
            cursor.execute(
                "SELECT id, data FROM records JOIN tenants USING (tenant_id) WHERE name = %s", (self._tenant,)
            )
            stored: dict[str, Any] = dict(cursor.fetchall())
        for number, expected in self._stands.items():
            if stored.get(f"r{number}", "nothing") != expected:
                yield f"r{number}: the table has {stored.get(f'r{number}')}, expected {expected}"


def _as_expected(expected: Outcome, result: Message) -> bool:
    told = result["status"] == expected.status and result.get("data", expected.data) == expected.data
    return told and (not expected.winners or result.get("winner") in expected.winners)


def _batches(numbers: Sequence[int], items: int = BATCH) -> Iterator[Sequence[int]]:
    for first in range(0, len(numbers), items):
        yield numbers[first : first + items]
