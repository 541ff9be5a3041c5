"""Hypothesis strategies for small worlds: few tenants, devices and records, many collisions.

A message is drawn as a sketch: bases and times are relative to what the record turns out to be
when the message's turn comes ("one behind", "a tie"), so that most draws hit something.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, get_args

from hypothesis import strategies as st

from engine.model.domains import Domain, Domains, Fallback, Policy
from tests.harness.contract_model import DomainSpec
from tests.harness.contract_model import Policy as ModelPolicy

TENANTS = (1, 2)
DEVICES = ("phone", "tablet", "desk")
RECORD_DOMAINS = ("task", "form", "note")
RECORD_BYTES = 240

_STEPS = {"ASSIGNED": ("STARTED",), "STARTED": ("DONE", "PAUSED"), "PAUSED": ("STARTED",)}

ENGINE_DOMAINS = Domains(
    {
        "task": Domain(status=_STEPS),
        "form": Domain(required=("title",), server_owned=("owned",)),
        "note": Domain(),
        "voice": Domain(kind="event", required=("verified",)),
    }
)
MODEL_DOMAINS = {
    "task": DomainSpec(steps=_STEPS),
    "form": DomainSpec(required=("title",), server_owned=("owned",)),
    "note": DomainSpec(),
    "voice": DomainSpec(is_record=False, required=("verified",)),
}

Json = dict[str, Any]
Policies = dict[str, ModelPolicy]


@dataclass(frozen=True)
class ItemSketch:
    """One item; ``base`` and ``at`` are relative and become fixed when the item is sent.

    ``base`` is None, or the versions ahead of (or behind) the record's. ``at`` is None, or
    (anchor, seconds) with anchor ``stored``, ``now``, ``start``, or ``sent``: as the last version's was sent.
    """

    domain: str
    id: str
    op: str
    base: int | None
    at: tuple[str, int] | None
    data: Json | None
    changed: list[str] | None
    spoil: Json | None


@dataclass(frozen=True)
class SyncSketch:
    """One ``sync``; ``key`` is one of few, or None for a fresh one."""

    tenant: int
    device: str
    key: int | None
    atomic: bool
    clock_offset_s: int
    items: list[ItemSketch]


@dataclass(frozen=True)
class Repeat:
    """The very message number ``which`` (from the latest) again; ``spoiled`` with other bytes."""

    which: int
    spoiled: bool


@dataclass(frozen=True)
class ResolveSketch:
    """One ``resolve`` of the conflict number ``which``; ``behind`` is how stale its version is.

    ``more`` is how many changes more than there are it was decided on, None if it does not say.
    """

    which: int
    tenant: int | None
    device: str | None
    supervisor: bool
    choice: str
    behind: int
    data: Json
    more: int | None


@dataclass(frozen=True)
class RepeatResolve:
    """An earlier ``resolve`` again, by the same device or another."""

    which: int
    device: str | None


@dataclass(frozen=True)
class AttachSketch:
    """One file of few is attached to its record, or taken ``out`` of it; number 6 was never stored."""

    tenant: int
    number: int
    domain: str
    id: str
    out: bool


Command = SyncSketch | Repeat | ResolveSketch | RepeatResolve | AttachSketch


@dataclass(frozen=True)
class Batch:
    """Policies to switch first, then the commands of one batch; a step of time before each.

    ``empties`` has the last data of tombstones dropped before.
    """

    switch: tuple[int, str, ModelPolicy] | None
    commands: list[tuple[int, Command]]
    empties: bool = False


_scalars = st.sampled_from([1, 1.0, True, 0, False, "a", "b", "ä", 2.5, 2**63 - 1])
_nested = st.dictionaries(
    st.sampled_from(["x", "y"]),
    _scalars | st.none() | st.just({"z": 1}) | st.just({"z": None}) | st.just([1, None]),
    max_size=2,
)
_statuses = st.sampled_from(["DONE", "LOST", None, 7])
_likely_statuses = st.sampled_from(["ASSIGNED", "STARTED", "STARTED", "DONE", "PAUSED"])
_long = st.sampled_from(["x" * 120, "ä" * 70])
_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "status": _likely_statuses | _likely_statuses | _statuses,
    "title": st.sampled_from(["t", "t", "u", "v", None]),
    "owned": _scalars,
    "escalation_level": _scalars,
    "a": _scalars,
    "b": _scalars | st.none(),
    "n": _nested | _nested | _scalars | _long,
    "m": _nested | _scalars | _long,
}
_NAMES = {
    "task": ("status", "escalation_level", "a", "n"),
    "form": ("title", "owned", "a", "b"),
    "note": ("a", "b", "n", "m"),
}
_SUBSETS = {
    domain: [subset for size in (1, 2, 3, 2, 0, len(names)) for subset in itertools.combinations(names, size)]
    for domain, names in _NAMES.items()
}
_SPOILS: list[Json] = [
    {"domain": "nothing"},
    {"domain": 3},
    {"op": "append"},
    {"op": "upsert"},
    {"base": 0},
    {"base": -1},
    {"base": "1"},
    {"id": ""},
    {"id": "x" * 129},
    {"id": "a\u0007"},
    {"at": "yesterday"},
    {"at": "2026-01-02T03:04:05"},
    {"data": [1]},
    {"data": {"a": "\u0000"}},
    {"data": {"a": 2**63}},
    {"changed": "a"},
]


@st.composite
def _data(draw: st.DrawFn, domain: str, *, patch: bool) -> Json:
    names = draw(st.sampled_from(_SUBSETS[domain]))
    data: Json = {name: draw(_FIELDS[name]) for name in names}
    if patch:
        for name in draw(st.lists(st.sampled_from(_NAMES[domain]), unique=True, max_size=1)):
            data[name] = None
    elif domain == "form" and draw(st.integers(0, 4)):
        data.setdefault("title", draw(st.sampled_from(["t", "u"])))
    return data


_bases = st.sampled_from([0, -1, -1, -2, -1, 0, -3, 1, None])
_ats = st.none() | st.tuples(
    st.sampled_from(["stored", "stored", "sent", "sent", "now", "start"]), st.sampled_from([0, 1, -1, 3, -3])
)


@st.composite
def _items(draw: st.DrawFn, domains: st.SearchStrategy[str]) -> ItemSketch:
    spoil = draw(st.sampled_from(_SPOILS)) if draw(st.integers(0, 29)) == 29 else None
    if draw(st.integers(0, 11)) == 11:
        fields = {"verified": draw(st.sampled_from([True, False, 1, None])), "a": draw(_scalars)}
        at = draw(st.none() | st.tuples(st.just("start"), st.sampled_from([0, 1])))
        return ItemSketch(
            "voice", draw(st.sampled_from(["r1", "r2"])), "append", None, at, fields, None, spoil
        )
    domain = draw(domains)
    op = draw(st.sampled_from(["put", "patch", "put", "patch", "put", "patch", "patch", "delete", "delete"]))
    data: Json | None = None if op == "delete" else draw(_data(domain, patch=op == "patch"))
    changed = None
    if op == "put":
        changed = draw(st.sampled_from([None, *map(list, _SUBSETS[domain])]) | st.none())
    return ItemSketch(
        domain,
        draw(st.sampled_from(["r1", "r1", "r1", "r2"])),
        op,
        draw(_bases),
        draw(_ats),
        data,
        changed,
        spoil,
    )


@st.composite
def _links(draw: st.DrawFn, domain: str) -> ItemSketch:
    """One of a chain of changes that a device made of one record, all on an old base."""
    op = draw(st.sampled_from(["patch", "patch", "patch", "patch", "put", "delete"]))
    data: Json | None = None
    if op == "patch":
        names = draw(st.sampled_from(_SUBSETS[domain]))
        values = st.none() | _scalars | _nested | _nested
        data = {name: draw(values) for name in names}
    elif op == "put":
        data = draw(_data(domain, patch=False))
    at = draw(st.none() | st.tuples(st.just("start"), st.sampled_from([1, 2, 2, 3, 4])))
    return ItemSketch(domain, "r1", op, draw(st.sampled_from([None, -1])), at, data, None, None)


_tenants = st.sampled_from([1, 1, 1, 1, 2])
_devices = st.sampled_from(DEVICES)
_resolves = st.builds(
    ResolveSketch,
    which=st.sampled_from([0, 0, 0, 1, 2]),
    tenant=st.sampled_from([None, None, None, None, None, None, 1, 2]),
    device=st.none() | _devices,
    supervisor=st.booleans(),
    choice=st.sampled_from(["client", "server", "merged"]),
    behind=st.sampled_from([0, 0, 0, 0, 0, 1, -1]),
    data=_data("task", patch=False) | _data("form", patch=False) | _data("note", patch=False),
    more=st.sampled_from([None, None, 0, 0, 0, 1, -1]),
)
_repeats = st.builds(
    Repeat, which=st.sampled_from([0, 0, 1, 2, 3, 4]), spoiled=st.sampled_from([False, False, True])
)
_repeated_resolves = st.builds(
    RepeatResolve, which=st.sampled_from([0, 0, 1, 2]), device=st.none() | _devices
)


def _commands(domains: st.SearchStrategy[str]) -> st.SearchStrategy[Command]:
    syncs = st.builds(
        SyncSketch,
        tenant=_tenants,
        device=_devices,
        key=st.sampled_from([None, None, None, None, None, None, None, None, 0, 1]),
        atomic=st.sampled_from([False, False, False, False, True]),
        clock_offset_s=st.sampled_from([0, 0, 0, 2, -2, 3600]),
        items=st.lists(_items(domains), min_size=1, max_size=3),
    )
    chains = st.builds(
        SyncSketch,
        tenant=st.just(1),
        device=st.sampled_from(["phone", "phone", "tablet"]),
        key=st.none(),
        atomic=st.just(False),
        clock_offset_s=st.sampled_from([0, 0, 2]),
        items=domains.flatmap(lambda domain: st.lists(_links(domain), min_size=1, max_size=4)),
    )
    files = st.builds(
        AttachSketch,
        tenant=_tenants,
        number=st.sampled_from([0, 0, 0, 1, 2, 3, 4, 4, 4, 5, 6]),
        domain=domains,
        id=st.sampled_from(["r1", "r1", "r1", "r2"]),
        out=st.sampled_from([False, False, True]),
    )
    turns: list[st.SearchStrategy[Command]] = [
        *[syncs] * 12,
        *[chains] * 4,
        *[files] * 5,
        _repeats,
        *[_resolves] * 4,
        _repeated_resolves,
    ]
    return st.sampled_from(turns).flatmap(lambda turn: turn)


_fallbacks = st.sampled_from(get_args(Fallback))
model_policies = st.one_of(
    st.builds(ModelPolicy, st.sampled_from(get_args(Policy))),
    st.builds(ModelPolicy, st.just("field_merge"), _fallbacks),
    st.sampled_from([ModelPolicy("manual")]),
)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[int, Policies], list[Batch]]:
    """Draw the policies at the start and a run of batches; most of it in one domain."""
    favourite = draw(st.sampled_from(RECORD_DOMAINS))
    domains = st.sampled_from([favourite] * 5 + list(RECORD_DOMAINS))
    opening = {tenant: {domain: draw(model_policies) for domain in RECORD_DOMAINS} for tenant in TENANTS}
    switches = st.none() | st.none() | st.tuples(_tenants, domains, model_policies)
    commands = st.tuples(st.sampled_from([0, 0, 1, 1, 2, 5]), _commands(domains))
    batches = st.builds(
        Batch,
        switch=switches,
        commands=st.lists(commands, min_size=1, max_size=5),
        empties=st.sampled_from([False, False, False, False, True]),
    )
    return opening, draw(st.lists(batches, min_size=3, max_size=7))
