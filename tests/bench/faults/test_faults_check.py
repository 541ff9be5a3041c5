"""The checker of scenario ``faults``: it passes a right history and finds every fault planted into one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.faults.check import RULES, Found, check, summary
from bench.faults.history import (
    Answered,
    Change,
    Event,
    Fault,
    History,
    Item,
    Joined,
    Paged,
    Refused,
    Result,
    Rewound,
    Sent,
)
from bench.faults.tables import COUNTED, Stored, Tables
from bench.harness.audit import key_hash

AT = "2026-01-02T03:04:05Z"


class World:
    """A server that does everything right, in a few lines, and the devices that saw it."""

    def __init__(self, tenants: dict[str, str]) -> None:
        self.tenants = tenants
        self.history: list[Event] = []
        self.tables = Tables(
            {}, dict.fromkeys(tenants.values(), 0), {}, {what: Counter() for what in COUNTED}
        )
        self.changes: dict[str, list[Change]] = {tenant: [] for tenant in tenants.values()}
        self._pushed: Counter[str] = Counter()
        self._read: Counter[str] = Counter()
        self.history += [Joined(at_s=0, device=device, tenant=tenants[device]) for device in tenants]

    def push(self, device: str, *items: Item, answers: int = 1) -> None:
        """Have a device push items and be answered so many times."""
        tenant = self.tenants[device]
        self._pushed[device] += 1
        key = f"{device}-{self._pushed[device]}"
        results = [self._apply(tenant, device, item) for item in items]
        self.tables.counts["keys"][tenant, key_hash(device, key)] += 1
        self.history.append(Sent(at_s=1, device=device, key=key, attempt=1, items=list(items)))
        for number in range(answers):
            self.history.append(
                Answered(at_s=2, device=device, key=key, replayed=number > 0, results=results)
            )

    def _apply(self, tenant: str, device: str, item: Item) -> Result:
        if item.op == "append":
            self.tables.events[tenant, item.domain, item.id] = [item.data]
            return Result("applied", item.domain, item.id)
        if item.op == "refuse":
            self.tables.counts["rejected items"][tenant, device] += 1
            return Result("rejected", item.domain, item.id, error={"code": "invalid_item", "message": ""})
        row = self.tables.records.get((tenant, item.domain, item.id))
        if item.op == "hold":
            held = f"{device} {item.id}"
            self.tables.counts["conflicts"][tenant, device, held] = 1
            self.tables.counts["held changes"][tenant, device, item.domain, item.id] += 1
            return Result("conflict", item.domain, item.id, conflict_id=held, version=1, seq=1, data=None)
        self.tables.counters[tenant] += 1
        seq, version = self.tables.counters[tenant], (row.version if row else 0) + 1
        data = item.data
        if item.op == "patch":
            merged = {**((row and row.data) or {}), **(item.data or {})}
            data = {name: value for name, value in merged.items() if value is not None}
        self.tables.records[tenant, item.domain, item.id] = Stored(version, seq, data)
        self.changes[tenant].append(Change(item.domain, item.id, version, seq, data is None, data))
        if item.base is not None and item.base != version - 1:
            winner = {"winner": "client", "data": data}
            self.tables.counts["settled changes"][tenant, device, item.domain, item.id, "client"] += 1
            return Result("resolved", item.domain, item.id, version=version, seq=seq, **winner)  # type: ignore[arg-type]
        return Result("applied", item.domain, item.id, version=version, seq=seq)

    def page(self, device: str) -> None:
        """Show a device all that it has not seen."""
        changes = self.changes[self.tenants[device]]
        unseen = changes[self._read[device] :]
        self._read[device] = len(changes)
        self.history.append(Paged(at_s=3, device=device, feed="live", changes=unseen))

    def end(self) -> None:
        """Show everybody the rest, and everything from the beginning."""
        for device, tenant in self.tenants.items():
            self.page(device)
            whole = [
                change
                for change in self.changes[tenant]
                if self.tables.records[tenant, change.domain, change.id].version == change.version
            ]
            self.history.append(Paged(at_s=4, device=device, feed="whole", changes=whole))


def put(name: str, tenant: str, note: str, base: int | None = None) -> Item:
    return Item("task", name, "put", AT, base, {"tenant": tenant, "by": note})


@pytest.fixture
def world() -> World:
    """Two tenants, three devices, something of everything."""
    found = World({"a1": "a", "a2": "a", "b1": "b"})
    found.push("a1", put("r", "a", "first"), put("s", "a", "second"), answers=2)
    found.push("b1", put("r", "b", "of b"))
    found.page("a2")
    found.push("a2", Item("task", "r", "patch", AT, 1, {"by": "third", "tenant": "a", "gone": None}))
    found.push("a2", put("r", "a", "fourth", base=1), Item("task", "s", "delete", AT, 1))
    found.push("a1", Item("metrics", "m", "append", AT, data={"tenant": "a", "value": 1}))
    found.push("a1", Item("task", "x", "refuse", AT), Item("task", "r", "hold", AT))
    found.push("b1", put("r", "b", "again", base=1))
    found.end()
    return found


def test_check_right_history_passes(world: World) -> None:
    assert check(world.history, world.tables) == []


def test_history_is_written_and_read_again(world: World, tmp_path: Path) -> None:
    history = History()
    history.events = [*world.history, Fault(at_s=5, round=1, name="none", phase="over")]
    history.write(tmp_path / "lines")
    assert msgspec.json.Decoder(Event).decode_lines((tmp_path / "lines").read_bytes()) == history.events


def _place(world: World, kind: type, device: str, **fields: Any) -> int:
    return next(
        index
        for index, event in enumerate(world.history)
        if isinstance(event, kind)
        and event.device == device  # type: ignore[union-attr]
        and all(getattr(event, name) == value for name, value in fields.items())
    )


def _replace(world: World, place: int, **fields: Any) -> None:
    world.history[place] = msgspec.structs.replace(world.history[place], **fields)


def _row(world: World, where: tuple[str, str, str], **fields: Any) -> None:
    world.tables.records[where] = world.tables.records[where]._replace(**fields)


def _lost_item(world: World) -> None:
    del world.tables.records["a", "task", "s"]


def _lost_version(world: World) -> None:
    _row(world, ("a", "task", "r"), version=2, seq=4)


def _applied_twice(world: World) -> None:
    _row(world, ("b", "task", "r"), version=3, seq=3)
    world.tables.counters["b"] = 3


def _other_data(world: World) -> None:
    _row(world, ("a", "task", "r"), data={"tenant": "a", "by": "nobody"})


def _skipped_seq(world: World) -> None:
    world.tables.counters["a"] += 1


def _seq_told_twice(world: World) -> None:
    place = _place(world, Answered, "b1", key="b1-2")
    results = world.history[place].results  # type: ignore[union-attr]
    _replace(world, place, results=[msgspec.structs.replace(results[0], seq=1)])


def _version_told_twice(world: World) -> None:
    place = _place(world, Answered, "b1", key="b1-2")
    results = world.history[place].results  # type: ignore[union-attr]
    _replace(world, place, results=[msgspec.structs.replace(results[0], version=1)])


def _other_answer_to_a_retry(world: World) -> None:
    place = _place(world, Answered, "a1", replayed=True)
    results = world.history[place].results  # type: ignore[union-attr]
    _replace(world, place, results=[msgspec.structs.replace(results[0], seq=9), results[1]])


def _never_answered(world: World) -> None:
    del world.history[_place(world, Answered, "a1", key="a1-3")]


def _answer_of_other_items(world: World) -> None:
    _replace(world, _place(world, Answered, "a1", key="a1-2"), results=[Result("applied", "task", "zz")])


def _applied_out_of_order(world: World) -> None:
    first, second = (_place(world, Sent, "a2", key=key) for key in ("a2-1", "a2-2"))
    world.history[first], world.history[second] = world.history[second], world.history[first]


def _key_kept_twice(world: World) -> None:
    world.tables.counts["keys"]["a", key_hash("a1", "a1-1")] += 1


def _key_not_kept(world: World) -> None:
    del world.tables.counts["keys"]["a", key_hash("a1", "a1-1")]


def _unknown_key(world: World) -> None:
    world.tables.counts["keys"]["a", key_hash("a1", "of nobody")] += 1


def _event_twice(world: World) -> None:
    world.tables.events["a", "metrics", "m"] *= 2


def _event_lost(world: World) -> None:
    del world.tables.events["a", "metrics", "m"]


def _event_of_nobody(world: World) -> None:
    world.tables.events["a", "metrics", "n"] = [{}]


def _not_in_quarantine(world: World) -> None:
    del world.tables.counts["rejected items"]["a", "a1"]


def _conflict_of_nobody(world: World) -> None:
    world.tables.counts["conflicts"]["a", "a2", "of nobody"] = 1


def _conflict_lost(world: World) -> None:
    world.tables.counts["conflicts"].clear()


def _last_live(world: World, device: str) -> tuple[int, list[Change]]:
    place = max(
        index
        for index, event in enumerate(world.history)
        if isinstance(event, Paged) and event.device == device and event.feed == "live" and event.changes
    )
    return place, list(world.history[place].changes)  # type: ignore[union-attr]


def _foreign_item(world: World) -> None:
    place, changes = _last_live(world, "b1")
    data = {"tenant": "a", "by": "again"}
    _replace(world, place, changes=[*changes[:-1], msgspec.structs.replace(changes[-1], data=data)])


def _foreign_tombstone(world: World) -> None:
    place, changes = _last_live(world, "b1")
    _replace(world, place, changes=[*changes, Change("task", "s", 2, 5, deleted=True, data=None)])


def _page_goes_back(world: World) -> None:
    place, changes = _last_live(world, "a1")
    _replace(world, place, changes=[*changes, changes[0]])


def _seq_repeated_over_pages(world: World) -> None:
    place, changes = _last_live(world, "a1")
    world.history.insert(place + 1, Paged(at_s=3, device="a1", feed="live", changes=changes[-1:]))


def _page_with_another_version(world: World) -> None:
    place, changes = _last_live(world, "b1")
    _replace(world, place, changes=[*changes[:-1], msgspec.structs.replace(changes[-1], version=3)])


def _not_converged(world: World) -> None:
    place, changes = _last_live(world, "a1")
    _replace(world, place, changes=changes[:-1])


def _replica_with_other_data(world: World) -> None:
    place = _place(world, Sent, "b1", key="b1-2")
    _replace(world, place, items=[put("r", "b", "something else", base=1)])


def _whole_pull_lacks_one(world: World) -> None:
    place = _place(world, Paged, "b1", feed="whole")
    _replace(world, place, changes=[])


def _whole_pull_missing(world: World) -> None:
    del world.history[_place(world, Paged, "b1", feed="whole")]


def _cursor_expired(world: World) -> None:
    refused = Refused(at_s=3, device="a1", key=None, code="cursor_expired", retryable=False)
    world.history.append(refused)


def _refused_for_good(world: World) -> None:
    refused = Refused(at_s=3, device="a1", key="a1-1", code="idempotency_key_reused", retryable=False)
    world.history.append(refused)


PLANTED: dict[Callable[[World], None], str] = {
    _lost_item: "a/task/s: acknowledged at version 2 to a2 for a2-2 and not there",
    _lost_version: "a/task/r: version 3 was acknowledged to a2 for a2-2, the table has 2",
    _applied_twice: "b/task/r: version 3 was written by no acknowledged item",
    _other_data: "a/task/r in the table: version 3 is not what a2 wrote",
    _skipped_seq: "a: seq 6 was acknowledged to nobody",
    _seq_told_twice: "b: seq 1 was acknowledged 2 times",
    _version_told_twice: "b/task/r: version 1 was acknowledged to",
    _other_answer_to_a_retry: "a1: a1-1 was answered differently",
    _never_answered: "a1: a1-3 of a with 2 items was never answered; its key is stored",
    _answer_of_other_items: "a1: a1-2 was answered with results of other items",
    _applied_out_of_order: "a2: a2-1 was applied before a2-2, which was sent first",
    _key_kept_twice: "a1 a1-1: 1 keys as the device knows, 2 in the tables",
    _key_not_kept: "a1 a1-1: 1 keys as the device knows, 0 in the tables",
    _unknown_key: f"a/{key_hash('a1', 'of nobody')}: 0 keys as the device knows, 1 in the tables",
    _event_twice: "a/metrics/m of a1 for a1-2: the event was acknowledged and stands 2 times",
    _event_lost: "a/metrics/m of a1 for a1-2: the event was acknowledged and stands 0 times",
    _event_of_nobody: "a/metrics/n: an event that nobody was told of",
    _not_in_quarantine: "a/a1: 1 rejected items as the device knows, 0 in the tables",
    _conflict_of_nobody: "a/a2/of nobody: 0 conflicts as the device knows, 1 in the tables",
    _conflict_lost: "a/a1/a1 r: 1 conflicts as the device knows, 0 in the tables",
    _foreign_item: "b1 at 3.00 s: task/r version 2: is data of a",
    _foreign_tombstone: "b1 at 3.00 s: task/s version 2: seq 5 was acknowledged for None",
    _page_goes_back: "came after version",
    _seq_repeated_over_pages: "seq 5 came after 5",
    _page_with_another_version: "b1 at 3.00 s: task/r version 3: seq 2 was acknowledged for",
    _not_converged: "a1: task/s is known at version 1, the table has 2",
    _replica_with_other_data: "b1: task/r is known with other data",
    _whole_pull_lacks_one: "b1: task/r is pulled otherwise",
    _whole_pull_missing: "b1: did not pull from null",
    _cursor_expired: "a1 at 3.00 s: cursor_expired",
    _refused_for_good: "a1 at 3.00 s: idempotency_key_reused",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__[1:])
def test_check_planted_fault_is_found(world: World, plant: Callable[[World], None]) -> None:
    plant(world)
    found = check(world.history, world.tables)
    assert any(PLANTED[plant] in fault.sentence for fault in found), found


def test_check_message_without_an_answer_is_named_where_it_may_have_written(world: World) -> None:
    del world.history[_place(world, Answered, "a2", key="a2-1")]
    kinds = {fault.kind: fault.sentence for fault in check(world.history, world.tables)}
    assert kinds["stored and acknowledged to nobody"].startswith("a: seq ")
    sentences = [fault.sentence for fault in check(world.history, world.tables)]
    assert any(
        one.startswith("a/task/r: version 2") and one.endswith("is a2 a2-1 (patch)") for one in sentences
    )
    lost = list(RULES)[:3]
    assert not kinds.keys() & set(lost), "nothing that was acknowledged is missing"


def test_summary_has_the_number_of_each_kind_and_the_first_of_them() -> None:
    found = [Found("pages", f"page {number}") for number in range(9)] + [Found("others", "one")]
    assert list(summary(found)) == [
        "pages: 9",
        *(f"  page {number}" for number in range(5)),
        "others: 1",
        "  one",
    ]


def _random_world(random: Random) -> World:
    tenants = {"a1": "a", "a2": "a", "b1": "b"}
    found = World(tenants)
    for number in range(random.randint(3, 25)):
        device = random.choice(list(tenants))
        tenant, name = tenants[device], f"r{random.randrange(3)}"
        row = found.tables.records.get((tenant, "task", name))
        base = random.choice([None, row and row.version])
        if random.random() < 0.3:
            found.page(random.choice(list(tenants)))
        op = random.choice(["put", "put", "patch", "delete"])
        data = None if op == "delete" else {"tenant": tenant, "by": f"{number}"}
        found.push(device, Item("task", name, op, AT, base, data), answers=random.choice([1, 1, 2]))
    found.end()
    return found


@given(st.randoms(use_true_random=False))
def test_any_right_history_passes_and_none_with_a_row_changed(random: Random) -> None:
    found = _random_world(random)
    assert check(found.history, found.tables) == []
    where = random.choice(sorted(found.tables.records))
    row = found.tables.records[where]
    for changed in (
        row._replace(version=row.version + 1),
        row._replace(seq=row.seq + 1),
        row._replace(data={"tenant": where[0], "by": "nobody"}),
    ):
        other = deepcopy(found.tables.records)
        other[where] = changed
        assert check(found.history, found.tables._replace(records=other)) != []


@given(st.randoms(use_true_random=False))
def test_check_history_that_lacks_an_answer_fails(random: Random) -> None:
    found = _random_world(random)
    keys = sorted({event.key for event in found.history if isinstance(event, Answered)})
    lost = random.choice(keys)
    kept = [event for event in found.history if not (isinstance(event, Answered) and event.key == lost)]
    assert check(kept, found.tables) != []


def test_check_replay_may_leave_data_out_and_nothing_else_may(world: World) -> None:
    place = _place(world, Answered, "a2", key="a2-2")
    answer = world.history[place]
    assert isinstance(answer, Answered)
    resolved, other = answer.results
    assert resolved.data is not msgspec.UNSET
    short = msgspec.structs.replace(resolved, data=msgspec.UNSET)
    again = msgspec.structs.replace(answer, results=[short, other], replayed=True)
    world.history.insert(place + 1, again)
    assert check(world.history, world.tables) == []
    for wrong in (
        msgspec.structs.replace(again, replayed=False),
        msgspec.structs.replace(
            again, results=[msgspec.structs.replace(short, data={"by": "nobody"}), other]
        ),
        msgspec.structs.replace(again, results=[msgspec.structs.replace(short, winner="merged"), other]),
        msgspec.structs.replace(again, results=[short]),
    ):
        world.history[place + 1] = wrong
        found = check(world.history, world.tables)
        assert any("a2-2 was answered differently" in fault.sentence for fault in found)


@pytest.mark.parametrize(("code", "passes"), [("overloaded", True), ("unavailable", False)])
def test_check_message_put_off_may_be_overtaken_only_by_load(world: World, code: str, passes: bool) -> None:
    _applied_out_of_order(world)
    world.history.append(Refused(at_s=3, device="a2", key="a2-2", code=code, retryable=True))
    assert (check(world.history, world.tables) == []) is passes


def test_check_page_that_goes_back_is_no_fault_after_a_rewind(world: World) -> None:
    first = next(event for event in world.history if isinstance(event, Paged) and event.device == "a2")
    found = check([*world.history, first], world.tables)
    assert any("came after" in fault.sentence for fault in found)
    assert check([*world.history, Rewound(at_s=5, device="a2"), first], world.tables) == []
