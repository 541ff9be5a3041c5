"""A world of clocks and lines: a device that sends its edits in order loses none to its own.

Clocks are right, wrong, or set between edits; what they show comes with every message, once a day, or never.
Lines are fast and slow; two workers know of each clock what they were told themselves. The world holds one
rule: an edit of a device takes its place wherever its own earlier edit stands.
"""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass, field
from typing import Any, get_args

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.cache.device_clock import DeviceClock
from engine.commit.validation import MessageValidator, Session
from engine.model.domains import Domain, DomainPolicy, Domains, Fallback, Policy
from engine.model.rows import RecordKey
from engine.model.tenants import Tenant
from engine.plan.batch import plan, read_set
from engine.plan.context import PlanContext
from engine.plan.work import PushAnswer
from engine.wire.codec import JSON
from engine.wire.messages import Sync
from engine.wire.timestamps import to_text
from tests.harness.memory_store import Memory

Json = dict[str, Any]

START_US = 1_767_323_045_000_000
SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
DAY_US = 24 * HOUR_US
FIELDS = ("a", "b", "c")
KEY = RecordKey(1, "task", "r")

MAX_EXAMPLES = 5_000 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 300


@dataclass(frozen=True)
class Route:
    """A message's way: ``took_us`` in truth, ``spare_us`` more as the server has to allow for."""

    worker: int
    socket: bool
    took_us: int
    spare_us: int


@dataclass(frozen=True)
class Edit:
    """A device changes fields of the record; ``dated`` is whether it tells when."""

    device: str
    op: str
    fields: tuple[str, ...]
    dated: bool


@dataclass(frozen=True)
class Send:
    """A device sends up to ``most`` of what waits, telling its ``clock`` or not; then it may pull."""

    device: str
    most: int
    line: Route
    clock: bool
    pulls: bool


@dataclass(frozen=True)
class SetClock:
    """A user sets a device's clock: how far it is behind from then on."""

    device: str
    behind_us: int


Step = Edit | Send | SetClock


@dataclass
class Phone:
    """A device by the guide: edits wait in order; one on others takes their base and is not earlier."""

    behind_us: int
    version: int = 0
    waiting: list[Json] = field(default_factory=list)
    told_us: int | None = None
    offset_us: int = 0
    ever_set: bool = False

    def at_us(self, now_us: int) -> int:
        """What an edit of now is dated."""
        shown_us = now_us - self.behind_us
        last_us: int = self.waiting[-1]["at_us"] if self.waiting else shown_us
        return max(shown_us, last_us)


class World:
    """The devices, two workers' knowledge of their clocks, and one record."""

    def __init__(self, policy: DomainPolicy, behind: dict[str, int]) -> None:
        ids, self.numbers = itertools.count(1), itertools.count(1)
        domains = Domains({"task": Domain(policy="manual", server_owned=())})
        self.policy = policy
        self.rows = Memory()
        self.validator = MessageValidator(domains, 500)
        self.context = PlanContext(
            domains, lambda _: {"task": policy}, lambda: f"id-{next(ids)}", 10_000, 1 << 20
        )
        self.now_us = START_US
        self.phones = {name: Phone(off_us) for name, off_us in behind.items()}
        self.clocks: dict[tuple[int, str], DeviceClock] = {}
        #: Who wrote each field's present value last, and the record.
        self.writers: dict[str, str] = {}
        self.writer: str | None = None

    def step(self, after_us: int, step: Step) -> None:
        """Let time pass, then have something happen."""
        self.now_us += after_us
        phone = self.phones[step.device]
        match step:
            case SetClock():
                phone.ever_set = phone.ever_set or step.behind_us != phone.behind_us
                phone.behind_us = step.behind_us
            case Edit():
                self._edit(phone, step)
            case Send():
                self._send(step.device, phone, step)

    def _edit(self, phone: Phone, step: Edit) -> None:
        value = next(self.numbers)
        data = dict.fromkeys(step.fields, value)
        base = phone.waiting[-1]["item"]["base"] if phone.waiting else phone.version or None
        at_us = phone.at_us(self.now_us)
        item: Json = {"domain": "task", "id": "r", "op": step.op, "base": base, "data": data}
        if step.op == "put":
            item["data"] = dict.fromkeys(FIELDS, value)
            item["changed"] = list(FIELDS)
        if step.dated:
            item["at"] = to_text(at_us)
        phone.waiting.append({"at_us": at_us, "item": item})

    def _send(self, device: str, phone: Phone, step: Send) -> None:
        sent, phone.waiting = phone.waiting[: step.most], phone.waiting[step.most :]
        line = step.line
        shown_us = self.now_us - phone.behind_us
        self.now_us += line.took_us
        offset_us = 0
        if step.clock:
            clock = self.clocks.setdefault((line.worker, device), DeviceClock())
            offset_us = clock.observe(shown_us, self.now_us, line.took_us + line.spare_us)
            phone.offset_us = offset_us
            if phone.behind_us == 0 and not phone.ever_set:
                assert offset_us == 0, "a clock that is right is right on every line"
        elif line.socket:
            offset_us = phone.offset_us
        for one in sent:
            self._push(device, one["item"], offset_us)
        row = self.rows.records.get(KEY)
        if (step.pulls or sent) and not phone.waiting and row is not None:
            phone.version = row.version

    def _push(self, device: str, item: Json, offset_us: int) -> None:
        frame = {"type": "sync", "id": "1", "key": f"k{next(self.numbers)}", "items": [item]}
        sync = JSON.decode(json.dumps(frame).encode())
        assert isinstance(sync, Sync)
        session = Session(tenant=Tenant(1, "t"), device_id=device, session_id="s", clock_offset_us=offset_us)
        work = self.validator.push(sync, session, self.now_us)
        before = self._data()
        planned = plan([work], self.rows.snapshot(read_set([work], self.context)), self.context)
        self.rows.apply(planned.writes, {1})
        (answer,) = planned.outcomes
        assert isinstance(answer, PushAnswer)
        (result,) = json.loads(answer.results)
        self._lost_nothing(device, item, result)
        after = self._data()
        if result["status"] in ("applied", "resolved") and result.get("winner") != "server":
            self.writer = device
        for name in FIELDS:
            if after.get(name) != before.get(name):
                self.writers[name] = device

    def _lost_nothing(self, device: str, item: Json, result: Json) -> None:
        """What the device's own edit wrote last takes the value of its later one."""
        if result["status"] == "conflict":
            assert self.policy.policy == "manual" or self.policy.fallback == "manual"
        data = self._data()
        own = [name for name in item["data"] if self.writers.get(name) == device]
        if self.policy.policy == "field_merge" and result["status"] == "conflict":
            others = [name for name in item["data"] if self.writers.get(name) != device]
            assert others, "what only its own edits changed is never held"
        elif self.policy.policy == "field_merge":
            assert all(data[name] == item["data"][name] for name in own)
        elif self.writer == device and result["status"] != "conflict":
            assert result.get("winner", "client") == "client"
            assert all(data[name] == value for name, value in item["data"].items())

    def _data(self) -> Json:
        row = self.rows.records.get(KEY)
        data: Json = {} if row is None or row.data is None else json.loads(row.data)
        return data


_SHORT = st.sampled_from([0, 0, SECOND_US // 10, SECOND_US, 6 * SECOND_US])
_LONG = st.sampled_from([0, 0, 0, 90 * SECOND_US, HOUR_US // 2, 3 * HOUR_US, DAY_US])
_OFF = st.sampled_from([0, 0, 3 * SECOND_US, -3 * SECOND_US, 2 * HOUR_US, -2 * HOUR_US, 400 * DAY_US])
_DEVICES = st.sampled_from(["phone", "phone", "phone", "tablet"])
_LINES = st.builds(
    Route,
    worker=st.sampled_from([1, 2]),
    socket=st.booleans(),
    took_us=_SHORT | _LONG,
    spare_us=_SHORT | _LONG,
)
_EDITS = st.builds(
    Edit,
    device=_DEVICES,
    op=st.sampled_from(["patch", "patch", "patch", "put"]),
    fields=st.sampled_from([("a",), ("a",), ("b",), ("c",), ("a", "b")]),
    dated=st.sampled_from([True, True, True, True, False]),
)
_SENDS = st.builds(
    Send,
    device=_DEVICES,
    most=st.sampled_from([1, 1, 2, 9]),
    line=_LINES,
    clock=st.sampled_from([True, True, False]),
    pulls=st.booleans(),
)
_SETS = st.builds(SetClock, device=_DEVICES, behind_us=_OFF)
_KINDS: list[st.SearchStrategy[Step]] = [_EDITS, _EDITS, _SENDS, _SENDS, _SETS]
_STEPS = st.sampled_from(_KINDS).flatmap(lambda kind: kind)
_POLICIES = st.builds(
    DomainPolicy,
    st.sampled_from([*get_args(Policy), "field_merge", "most_recent_wins"]),
    st.sampled_from(get_args(Fallback)),
)


@settings(
    max_examples=MAX_EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    policy=_POLICIES,
    phone=_OFF,
    tablet=_OFF,
    steps=st.lists(st.tuples(_SHORT | _LONG, _STEPS), min_size=4, max_size=24),
)
def test_device_that_sends_in_order_loses_no_edit_to_its_own(
    policy: DomainPolicy, phone: int, tablet: int, steps: list[tuple[int, Step]]
) -> None:
    world = World(policy, {"phone": phone, "tablet": tablet})
    for after_us, step in steps:
        world.step(after_us, step)


def test_edits_of_one_device_under_every_policy_all_stand() -> None:
    """The same without Hypothesis: the first on a slow line, from another worker, the clock an hour slow."""
    for policy in get_args(Policy):
        world = World(msgspec.convert({"policy": policy}, DomainPolicy), {"phone": HOUR_US})
        for worker, took_us, name in ((1, 6 * SECOND_US, "a"), (2, 0, "a"), (1, 90 * SECOND_US, "b")):
            world.step(SECOND_US, Edit("phone", "patch", (name,), dated=True))
            line = Route(worker, socket=False, took_us=took_us, spare_us=0)
            world.step(0, Send("phone", 9, line, clock=worker == 1, pulls=False))
        assert world._data() == {"a": 3, "b": 5}
