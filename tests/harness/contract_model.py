"""An executable model of the wire contract: what a ``sync`` and a ``resolve`` mean.

Written from the contract's text alone, plainly and slowly: it keeps the whole history of every
record and works everything out from it. It shares no code with the engine. Instants are
microseconds since 1970 UTC (``_us``); items are the JSON objects of the wire.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

Json = dict[str, Any]
RecordId = tuple[str, str]

#: So many changes wait in one conflict.
CHAIN = 128

_MISSING: Any = object()
#: Stands for the time of a change that does not say when it was made, where nothing comes before it.
FIRST_US = (datetime(1, 1, 1, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
_INT_RANGE = range(-(2**63), 2**63)


@dataclass(frozen=True)
class DomainSpec:
    """One kind of data; ``steps`` are the declared status steps."""

    is_record: bool = True
    required: tuple[str, ...] = ()
    server_owned: tuple[str, ...] = ("escalation_level", "escalated_at", "escalated_by", "status")
    steps: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Version:
    """One version of a record: ``data`` is None for a tombstone, ``device`` for nobody's.

    ``at_us`` is the record's time; ``change_at_us`` the time of the change that made this version,
    which a merge may have found older than what it met, and ``sent_us`` the same as the device sent it, None
    for an item without ``at``. ``on_top`` says that it was made on the version before it, ``settled`` that it
    won a conflict. ``by_field`` says that the domain was
    merged by field when this version was written.
    """

    data: Json | None
    at_us: int
    change_at_us: int
    device: str | None
    seq: int
    by_field: bool
    sent_us: int | None = None
    settled: bool = False
    on_top: bool = False


@dataclass(frozen=True)
class Waiting:
    """One change that waits for a person; ``sent_us`` is its ``at`` as it was sent."""

    op: str
    base: int | None
    at_us: int
    sent_us: int
    data: Json | None


@dataclass(frozen=True)
class Logged:
    """One conflict with both sides; ``outcome`` is ``open`` while a person has to decide.

    ``server_data`` are the fields of the record that were, or would have been, replaced.

    What came to an open one later has a row of its own, ``held``, and ``joined`` is the serial number of the
    open one. ``chain`` is all that waits there in order, ``count`` how many changes it took in.
    """

    domain: str
    record_id: str
    device: str
    policy: str
    outcome: str
    server_version: int
    server_data: Json | None
    base: int | None
    op: str
    at_us: int
    data: Json | None
    sent_us: int
    settled: Settled | None = None
    joined: int | None = None
    chain: tuple[Waiting, ...] = ()
    count: int = 1


@dataclass(frozen=True)
class Settled:
    """How a person decided: the ``decision`` is repeated by a repeated ``resolve``."""

    decision: str
    version: int
    seq: int
    by: str


@dataclass(frozen=True)
class EventRow:
    """A stored event."""

    data: Json
    at_us: int
    device: str


@dataclass(frozen=True)
class File:
    """A file as its record's entry shows it."""

    upload: str
    name: str
    content: str


@dataclass(frozen=True)
class Kept:
    """The kept answer of one ``sync``."""

    request: str
    results: list[Json]


@dataclass(frozen=True)
class Rejected:
    """A quarantined item."""

    device: str
    domain: str | None
    record_id: str | None
    code: str
    item: Json


@dataclass
class Tenant:
    """All that the server holds for one tenant. ``conflicts`` are by serial number.

    ``emptied`` says of which version a record was when the last data of its tombstone were dropped.
    ``files`` are those of records, which a tombstone keeps; ``uploads`` are the states of finished uploads,
    ``sent`` what they brought, and for which record.
    """

    seq: int = 0
    records: dict[RecordId, tuple[Version, ...]] = field(default_factory=dict)
    events: dict[tuple[str, str, int], EventRow] = field(default_factory=dict)
    keys: dict[tuple[str, str], Kept] = field(default_factory=dict)
    conflicts: dict[int, Logged] = field(default_factory=dict)
    quarantine: list[Rejected] = field(default_factory=list)
    files: dict[RecordId, tuple[File, ...]] = field(default_factory=dict)
    uploads: dict[str, str] = field(default_factory=dict)
    sent: dict[str, tuple[RecordId, str, str]] = field(default_factory=dict)
    emptied: dict[RecordId, int] = field(default_factory=dict)

    def copy(self) -> Tenant:
        """Copy deeply enough: the values of every collection are immutable."""
        return Tenant(
            self.seq,
            dict(self.records),
            dict(self.events),
            dict(self.keys),
            dict(self.conflicts),
            list(self.quarantine),
            dict(self.files),
            dict(self.uploads),
            dict(self.sent),
            dict(self.emptied),
        )


@dataclass(frozen=True)
class Policy:
    """How conflicts are settled in one domain."""

    policy: str
    fallback: str = "most_recent_wins"


class RejectedError(Exception):
    """An item is rejected with this code."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Outcome:
    """A settled conflict. ``data`` and ``at_us`` are of the record to write, if the server's lost."""

    winner: str
    data: Json | None
    at_us: int


HELD = Outcome("held", None, 0)


def instant_us(text: str) -> int:
    """Microseconds since 1970 of an RFC 3339 instant."""
    delta = datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)
    return delta // timedelta(microseconds=1)


def canonical(value: object) -> str:
    """Write a value so that equal contents are equal texts: 1, 1.0 and true differ, order does not."""
    return json.dumps(value, sort_keys=True)


def same(left: object, right: object) -> bool:
    """Whether two contents, or two missing values, are exactly the same."""
    if left is _MISSING or right is _MISSING:
        return left is right
    return canonical(left) == canonical(right)


def merge_patch(target: object, patch: object) -> Any:
    """Apply a merge patch as RFC 7396 defines it."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def chain_applied(chain: tuple[Waiting, ...], current: Json | None) -> Json | None:
    """Make all changes of a chain, one after the other."""
    for one in chain:
        current = _applied(one.op, one.data, current)
    return current


class World:
    """The server as the contract describes it.

    ``record_bytes`` bounds a stored record or event, ``record_fields`` the top-level fields of a record.
    ``kept_data_bytes`` bounds the data in a kept answer, and in the log those of a record that stands.
    """

    def __init__(
        self,
        domains: Mapping[str, DomainSpec],
        record_bytes: int,
        kept_data_bytes: int = 4096,
        record_fields: int = 1000,
    ) -> None:
        self.domains = domains
        self.record_bytes = record_bytes
        self.record_fields = record_fields
        self.kept_data_bytes = kept_data_bytes
        self.tenants: dict[int, Tenant] = {}
        self._serial = 0

    def tenant(self, tenant_id: int) -> Tenant:
        """Give all that is held for a tenant."""
        return self.tenants.setdefault(tenant_id, Tenant())

    # -- sync ---------------------------------------------------------------------------------

    def sync(
        self,
        tenant_id: int,
        device: str,
        key: str,
        atomic: bool,
        items: list[Any],
        now_us: int,
        clock_offset_us: int,
        policies: Mapping[str, Policy],
    ) -> tuple[list[Json], bool] | str:
        """Answer one ``sync``: its results and whether they are replayed, or an error's code.

        A held item's ``conflict_id`` is the serial number of its conflict.
        """
        if not all(isinstance(item, dict) for item in items):
            return "invalid_message"
        tenant = self.tenant(tenant_id)
        request = json.dumps([atomic, items])
        kept = tenant.keys.get((device, key))
        if kept is not None:
            return (self._again(tenant, kept), True) if kept.request == request else "idempotency_key_reused"
        before = tenant.copy()
        results: list[Json] = []
        for item in items:
            result = self._item(tenant, device, item, now_us, clock_offset_us, policies)
            results.append(result)
            if atomic and result["status"] in {"rejected", "conflict"}:
                self.tenants[tenant_id] = tenant = before
                results = self._aborted(tenant, items, len(results) - 1, result)
                break
        tenant.keys[device, key] = Kept(request, results)
        return results, False

    def _again(self, tenant: Tenant, kept: Kept) -> list[Json]:
        """Tell an answer again: data that were not kept only where the record has that version still."""
        room = self.kept_data_bytes
        results: list[Json] = []
        for result in kept.results:
            size = len(_compact(result["data"])) if result.get("data") is not None else 0
            if size <= room:
                room -= size
            elif len(tenant.records[result["domain"], result["id"]]) != result["version"]:
                result = {name: value for name, value in result.items() if name != "data"}  # noqa: PLW2901
            results.append(result)
        return results

    def _aborted(self, tenant: Tenant, items: list[Json], index: int, failed: Json) -> list[Json]:
        """Answer an atomic message of which nothing was done: the standing is that before it."""
        results = [
            _named(item) | {"status": "rejected", "error": {"code": "batch_aborted"}} for item in items
        ]
        if failed["status"] == "conflict":
            history = tenant.records.get((failed["domain"], failed["id"]), ())
            failed = _named(items[index]) | {"status": "conflict"} | _standing(history, data=True)
        results[index] = failed
        return results

    def _item(
        self,
        tenant: Tenant,
        device: str,
        item: Json,
        now_us: int,
        clock_offset_us: int,
        policies: Mapping[str, Policy],
    ) -> Json:
        try:
            self._check(item)
            if item["op"] == "append":
                answer = self._append(tenant, device, item, now_us, clock_offset_us)
            else:
                policy = policies[item["domain"]]
                answer = self._change(tenant, device, item, now_us, clock_offset_us, policy)
        except RejectedError as error:
            name = _named(item)
            tenant.quarantine.append(Rejected(device, name["domain"], name["id"], error.code, item))
            answer = {"status": "rejected", "error": {"code": error.code}}
        return _named(item) | answer

    def _check(self, item: Json) -> None:
        """Check what can be told from the item alone."""
        domain: Any = item.get("domain")
        item_id, op = item.get("id"), item.get("op")
        base, at, data, changed = (item.get(name) for name in ("base", "at", "data", "changed"))
        well_typed = (
            isinstance(domain, str)
            and isinstance(item_id, str)
            and 1 <= len(item_id) <= 128
            and not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in item_id)
            and op in {"put", "patch", "delete", "append"}
            and (base is None or (type(base) is int and 1 <= base < 2**63))
            and (at is None or _is_instant(at))
            and (changed is None or _are_names(changed))
        )
        if not well_typed:
            raise RejectedError("invalid_item")
        if domain not in self.domains:
            raise RejectedError("unknown_domain")
        if (op == "append") is self.domains[domain].is_record:
            raise RejectedError("invalid_item")
        if op == "append" and at is None:
            raise RejectedError("invalid_item")
        if op == "delete":
            return
        if not isinstance(data, dict):
            raise RejectedError("invalid_item")
        if self.domains[domain].is_record and len(data) > self.record_fields:
            raise RejectedError("too_large")
        if not _storable(data):
            raise RejectedError("invalid_item")

    def _append(self, tenant: Tenant, device: str, item: Json, now_us: int, clock_offset_us: int) -> Json:
        sent_us = instant_us(item["at"])
        identity = (item["domain"], item["id"], sent_us)
        stored = tenant.events.get(identity)
        if stored is not None:
            if same(stored.data, item["data"]):
                return {"status": "unchanged"}
            raise RejectedError("invalid_item")
        self._judge(item["domain"], item["data"], None)
        at_us = min(sent_us + clock_offset_us, now_us)
        tenant.events[identity] = EventRow(item["data"], at_us, device)
        return {"status": "applied"}

    def _change(
        self,
        tenant: Tenant,
        device: str,
        item: Json,
        now_us: int,
        clock_offset_us: int,
        policy: Policy,
    ) -> Json:
        domain, op, base = item["domain"], item["op"], item.get("base")
        at = item.get("at")
        sent_us = None if at is None else instant_us(at)
        at_us = now_us if sent_us is None else min(sent_us + clock_offset_us, now_us)
        data = None if op == "delete" else item["data"]
        history = tenant.records.get((domain, item["id"]), ())
        if not history and op == "delete":
            return {"status": "unchanged", "version": None, "seq": None}
        if not history and op == "patch" and base is not None:
            raise RejectedError("unknown_base")
        if not history and op == "patch" and self._set_aside(tenant, device, domain, item["id"]):
            raise RejectedError("creation_rejected")
        current = history[-1].data if history else None
        client = _applied(op, data, current)
        met = self._shortened(_overwritten(current, client))
        by_field = policy.policy == "field_merge"
        meets = _conflicts(history, device, base or 0, sent_us)
        logged = Logged(
            domain,
            item["id"],
            device,
            policy.policy,
            "held",
            len(history),
            met,
            base,
            op,
            at_us,
            data,
            FIRST_US if sent_us is None else sent_us,
        )
        if meets and "manual" in {policy.policy, policy.fallback if by_field else None}:
            serial = self._join(tenant, logged, sent_us)
            if serial is not None:
                return {"status": "conflict", "conflict_id": serial} | _standing(history, data=True)
        if history and same(client, current):
            return {"status": "unchanged"} | _standing(history)
        if not meets:
            self._judge(domain, client, current)
            on_top = base == len(history)
            version = Version(client, at_us, at_us, device, 0, by_field, sent_us, on_top=on_top)
            self._write(tenant, item, version)
            return {"status": "applied"} | _standing(tenant.records[domain, item["id"]])

        change = _Change(device, op, base or 0, at_us, sent_us, data, item.get("changed"))
        revives = op == "patch" and current is None
        if revives:
            client = merge_patch(self.last_data(tenant, (domain, item["id"])), data)
        outcome = _settle(policy, self.domains[domain], history, change, client)
        if revives and outcome.winner == "client" and self.last_data(tenant, (domain, item["id"])) is None:
            outcome = HELD
        if outcome.winner in {"client", "merged"}:
            self._judge(domain, outcome.data, current)
        if outcome is HELD:
            serial = self._join(tenant, logged, sent_us)
            if serial is not None:
                return {"status": "conflict", "conflict_id": serial} | _standing(history, data=True)
            chain = (_waiting(logged),)
            serial = self._log(tenant, replace(logged, outcome="open", chain=chain))
            return {"status": "conflict", "conflict_id": serial} | _standing(history, data=True)
        if outcome.winner != "server":
            logged = replace(logged, server_data=_overwritten(current, outcome.data))
        self._log(tenant, replace(logged, outcome=outcome.winner))
        if outcome.winner != "server":
            version = Version(outcome.data, outcome.at_us, at_us, device, 0, by_field, sent_us, settled=True)
            self._write(tenant, item, version)
        return {
            "status": "resolved",
            "winner": outcome.winner,
            "policy": policy.policy,
        } | _standing(tenant.records[domain, item["id"]], data=True)

    def _set_aside(self, tenant: Tenant, device: str, domain: str, record_id: str) -> bool:
        """Whether something that this device sent of a record waits in the quarantine."""
        return any(
            (one.device, one.domain, one.record_id) == (device, domain, record_id)
            for one in tenant.quarantine
        )

    def last_data(self, tenant: Tenant, record: RecordId) -> Json | None:
        """Give a deleted record as it last was; None where that is kept no longer."""
        history = tenant.records[record]
        alive = max(number for number, version in enumerate(history, 1) if version.data is not None)
        return history[alive - 1].data if tenant.emptied.get(record, 0) <= alive else None

    def empty(self) -> None:
        """Drop the last data of all records that are deleted now."""
        for tenant in self.tenants.values():
            for record, history in tenant.records.items():
                if history[-1].data is None:
                    tenant.emptied[record] = len(history)

    def _shortened(self, fields: Json | None) -> Json | None:
        """Leave out the largest fields, by their names if they are of one size, as long as it is too much."""
        if fields is None or len(_compact(fields)) <= self.kept_data_bytes:
            return fields
        left = sorted(fields, key=lambda name: (len(_compact({name: fields[name]})), name))
        while sum(len(_compact({name: fields[name]})) for name in left) > self.kept_data_bytes:
            left.pop()
        return {name: fields[name] for name in left}

    def _judge(self, domain: str, outcome: Json | None, standing: Json | None) -> None:
        """Judge what would be stored by the rules of its domain and by its size."""
        if outcome is None:
            return
        spec = self.domains[domain]
        if any(outcome.get(name) is None for name in spec.required):
            raise RejectedError("invalid_item")
        status = outcome.get("status")
        before = standing.get("status") if standing is not None else None
        if spec.steps and status is not None and not same(status, before):
            declared = set(spec.steps).union(*spec.steps.values())
            if not isinstance(status, str) or status not in declared:
                raise RejectedError("invalid_item")
            if before is not None and status not in _led_to(before, spec.steps):
                raise RejectedError("invalid_item")
        may_have = max(self.record_fields, len(standing or {}))
        if spec.is_record and len(outcome) > may_have:
            raise RejectedError("too_large")
        if len(_compact(outcome)) > self.record_bytes:
            raise RejectedError("too_large")

    def _write(self, tenant: Tenant, item: Json, version: Version) -> None:
        tenant.seq += 1
        key = (item["domain"], item["id"])
        tenant.records[key] = (*tenant.records.get(key, ()), replace(version, seq=tenant.seq))

    def _log(self, tenant: Tenant, logged: Logged) -> int:
        self._serial += 1
        tenant.conflicts[self._serial] = logged
        return self._serial

    def _join(self, tenant: Tenant, logged: Logged, sent_us: int | None) -> int | None:
        """Add a change to the conflict that its device has open on the record, if it has one.

        A change that does not say when it was made comes after all that came before it.
        """
        whose = (logged.device, logged.domain, logged.record_id)
        for serial, known in list(tenant.conflicts.items()):
            if known.outcome == "open" and (known.device, known.domain, known.record_id) == whose:
                if sent_us is None:
                    logged = replace(logged, sent_us=known.chain[-1].sent_us)
                change = _waiting(logged)
                if not again(known.chain, change):
                    chain = self.chained(known.chain, change)
                    tenant.conflicts[serial] = replace(known, chain=chain, count=known.count + 1)
                self._log(tenant, replace(logged, joined=serial))
                return serial
        return None

    def chained(self, chain: tuple[Waiting, ...], change: Waiting) -> tuple[Waiting, ...]:
        """Put changes in the order in which they were made, as far as they still matter, and bound them."""
        changes = sorted([*chain, change], key=lambda one: one.sent_us)
        while any(one.op != "patch" for one in changes[1:]):
            del changes[0]
        if self._passes(changes):
            merged: list[Waiting] = []
            for one in changes:
                merged.append(one)
                while len(merged) > 1 and len(both := _as_one(*merged[-2:])) == 1:
                    merged[-2:] = both
            changes = merged
            if self._passes(changes):
                raise RejectedError("too_large")
        return tuple(changes)

    def _passes(self, changes: list[Waiting]) -> bool:
        texts = [_compact(one.data) for one in changes if one.data is not None]
        return len(changes) > CHAIN or sum(map(len, texts)) > self.record_bytes

    # -- resolve ------------------------------------------------------------------------------

    def resolve(
        self,
        tenant_id: int,
        device: str,
        supervisor: bool,
        serial: int,
        choice: str,
        version: int,
        data: Json | None,
        changes: int | None,
        now_us: int,
        policies: Mapping[str, Policy],
    ) -> Json | str:
        """Answer one ``resolve``: the version and seq that it wrote, or an error's code.

        For ``conflict_stale`` it is the record's ``stale_version`` and ``data``, and the count of changes.
        """
        tenant = self.tenant(tenant_id)
        conflict = tenant.conflicts.get(serial)
        if conflict is None or not (supervisor or conflict.device == device):
            return "not_found"
        merged = data if choice == "merged" else None
        if choice == "merged" and not (isinstance(merged, dict) and _storable(merged)):
            return "invalid_message"
        decision = canonical([choice, version, merged, changes])
        if conflict.outcome != "open":
            settled = conflict.settled
            if settled is None or settled.decision != decision:
                return "conflict_closed"
            return {"version": settled.version, "seq": settled.seq}
        key = (conflict.domain, conflict.record_id)
        history = tenant.records[key]
        current = history[-1].data
        if version != len(history) or changes not in {None, conflict.count}:
            return {"stale_version": len(history), "data": current, "changes": conflict.count}
        if choice == "server":
            outcome = current
        elif choice == "client":
            standing = current
            if standing is None:  # which a put and a delete do not look at
                standing = self.last_data(tenant, key)
            outcome = chain_applied(conflict.chain, standing)
        else:
            outcome = merged
        if choice != "server":
            try:
                self._judge(conflict.domain, outcome, current)
            except RejectedError as error:
                return "too_large" if error.code == "too_large" else "invalid_message"
        by_field = policies[conflict.domain].policy == "field_merge"
        item = {"domain": conflict.domain, "id": conflict.record_id}
        self._write(tenant, item, Version(outcome, now_us, now_us, None, 0, by_field))
        settled = Settled(decision, len(history) + 1, tenant.seq, device)
        tenant.conflicts[serial] = replace(conflict, outcome=choice, settled=settled)
        return {"version": settled.version, "seq": settled.seq}

    # -- files --------------------------------------------------------------------------------

    def attach(self, tenant_id: int, record: RecordId, file: File) -> str:
        """Have a stored file become part of its record, and say what became of it."""
        tenant = self.tenant(tenant_id)
        state = tenant.uploads.get(file.upload)
        if state in {None, "freed", "retained"}:
            return "freed"
        if state == "duplicate":
            return state
        files = tenant.files.get(record, ())
        if any(one.upload == file.upload for one in files):
            return "attached"
        history = tenant.records.get(record, ())
        if not history or history[-1].data is None:
            return "waiting"
        if any((one.name, one.content) == (file.name, file.content) for one in files):
            tenant.uploads[file.upload] = "duplicate"
            return "duplicate"
        self._show_files(tenant, record, (*files, file))
        tenant.uploads[file.upload] = "attached"
        return "attached"

    def free(self, tenant_id: int, record: RecordId, upload: str) -> str:
        """Free an upload, and take its file out of its record unless another stands for it.

        Of a deleted one nobody is told.
        """
        tenant = self.tenant(tenant_id)
        if tenant.uploads.get(upload) not in {"stored", "attached", "duplicate"}:
            return "freed"
        tenant.uploads[upload] = "freed"
        of_same = {one for one, sent in tenant.sent.items() if sent == tenant.sent[upload]}
        standing = any(tenant.uploads[one] in {"attached", "duplicate"} for one in of_same)
        files = tenant.files.get(record, ())
        for file in files:
            if file.upload in of_same and not standing:
                tenant.uploads[file.upload] = "freed"
                self._show_files(tenant, record, tuple(one for one in files if one != file))
            elif file.upload == upload:
                tenant.uploads[upload] = "retained"
        return "freed"

    def _show_files(self, tenant: Tenant, record: RecordId, files: tuple[File, ...]) -> None:
        """Give the version that stands a new place in the feed, unless it is a tombstone."""
        tenant.files[record] = files
        *older, standing = tenant.records[record]
        if standing.data is not None:
            tenant.seq += 1
            tenant.records[record] = (*older, replace(standing, seq=tenant.seq))


# -- conflicts ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Change:
    device: str
    op: str
    base: int
    at_us: int
    sent_us: int | None
    data: Json | None
    changed: list[str] | None


def own_sent_us(history: tuple[Version, ...]) -> int | None:
    """Say which of a device's own times an item of it is held against, whose version is the last.

    That is the last that it sent a time with, in the unbroken run of its versions since it knew the version
    that stood; one that won a conflict does not set it back.
    """
    run: list[Version] = []
    for version in reversed(history):
        if version.device != history[-1].device:
            break
        run.append(version)
        if version.on_top:
            break
    last_us: int | None = None
    for version in reversed(run):
        if version.sent_us is not None and not (version.settled and version.sent_us < (last_us or 0)):
            last_us = version.sent_us
    return last_us


def _follows(sent_us: int | None, own_sent_us: int | None) -> bool:
    """Whether an item comes after its device's own: it does without a time on either side, and on a tie."""
    return sent_us is None or own_sent_us is None or sent_us >= own_sent_us


def _conflicts(history: tuple[Version, ...], device: str, base: int, sent_us: int | None) -> bool:
    """Whether a change of this device, made on ``base``, conflicts with what the server has."""
    if not history or base == len(history):
        return False
    chain = (
        base < len(history)
        and all(version.device == device for version in history[base:])
        and _follows(sent_us, own_sent_us(history))
    )
    return not chain


def _settle(
    policy: Policy,
    spec: DomainSpec,
    history: tuple[Version, ...],
    change: _Change,
    client: Json | None,
) -> Outcome:
    """Settle a conflict by its policy."""
    if policy.policy == "field_merge":
        return _merge_by_field(policy.fallback, spec, history, change, client)
    return _settle_whole(policy.policy, spec, history, change, client)


def _settle_whole(
    policy: str, spec: DomainSpec, history: tuple[Version, ...], change: _Change, client: Json | None
) -> Outcome:
    server = history[-1]
    clients = Outcome("client", client, change.at_us)
    servers = Outcome("server", None, 0)
    if policy == "manual":
        return HELD
    if policy == "server_wins":
        return servers
    if policy == "client_wins":
        return clients
    if policy == "most_recent_wins":
        if server.device == change.device:
            later = _follows(change.sent_us, own_sent_us(history))
        else:
            later = change.at_us > server.at_us
        return clients if later else servers
    assert policy == "preserve_escalation"
    if client is None or server.data is None:
        return servers
    kept = {name: value for name, value in client.items() if name not in spec.server_owned}
    kept |= {name: value for name, value in server.data.items() if name in spec.server_owned}
    return _named_by_side(kept, server.data, client, change.at_us)


def _merge_by_field(
    fallback: str,
    spec: DomainSpec,
    history: tuple[Version, ...],
    change: _Change,
    client: Json | None,
) -> Outcome:
    server = history[-1]
    names = change.data if change.op == "patch" else change.changed
    if names is None or client is None or server.data is None:
        return _settle_whole(fallback, spec, history, change, client)
    merged = dict(server.data)
    for name in names:
        ours, theirs = server.data.get(name, _MISSING), client.get(name, _MISSING)
        if same(ours, theirs):
            continue
        changed = _changed_since(history, change, name)
        follows_own = (
            changed is not None
            and changed.by_field
            and changed.own
            and _follows(change.sent_us, changed.sent_us)
        )
        if changed is None or follows_own:
            takes_client = True
        elif fallback == "manual":
            return HELD
        elif fallback == "most_recent_wins" and changed.own:
            takes_client = _follows(change.sent_us, changed.sent_us)
        elif fallback == "most_recent_wins":
            takes_client = change.at_us > changed.at_us
        elif fallback == "preserve_escalation":
            takes_client = name not in spec.server_owned
        else:
            takes_client = fallback == "client_wins"
        if takes_client and theirs is _MISSING:
            del merged[name]
        elif takes_client:
            merged[name] = theirs
    return _named_by_side(merged, server.data, client, max(change.at_us, server.at_us))


def _named_by_side(merged: Json, server: Json, client: Json, at_us: int) -> Outcome:
    """Name the winner of a merge: one that equals a side names that side."""
    if same(merged, server):
        return Outcome("server", None, 0)
    return Outcome("client" if same(merged, client) else "merged", merged, at_us)


@dataclass(frozen=True)
class _Changed:
    """The last change of a field: ``own`` if by the device that asks, then with the time it sent."""

    at_us: int
    own: bool
    sent_us: int | None
    by_field: bool


def _changed_since(history: tuple[Version, ...], change: _Change, name: str) -> _Changed | None:
    """Say when the server last changed a field after version ``base``; None if it did not.

    Up to the last version that was written while the domain was not merged by field, only the
    record as a whole is known to have changed.
    """
    base = change.base
    known_from = max((n for n, version in enumerate(history, 1) if not version.by_field), default=0)
    for number in range(len(history), max(base, known_from), -1):
        after = history[number - 1]
        before = history[number - 2].data if number > 1 else None
        if not same((before or {}).get(name, _MISSING), (after.data or {}).get(name, _MISSING)):
            sent_us = own_sent_us(history[:number]) if after.sent_us is None else after.sent_us
            return _Changed(after.change_at_us, after.device == change.device, sent_us, by_field=True)
    if base >= known_from:
        return None
    last, sent_us = history[known_from - 1], own_sent_us(history[:known_from])
    return _Changed(last.at_us, last.device == change.device, sent_us, by_field=False)


# -- chains of changes that wait ----------------------------------------------------------------


def _waiting(logged: Logged) -> Waiting:
    return Waiting(logged.op, logged.base, logged.at_us, logged.sent_us, logged.data)


def again(chain: tuple[Waiting, ...], change: Waiting) -> bool:
    """Whether a change is the very same as the last one that was made until then."""
    before = [one for one in chain if one.sent_us <= change.sent_us]
    if not before:
        return False
    last = before[-1]
    names = (last.op, last.base, last.sent_us)
    return names == (change.op, change.base, change.sent_us) and same(last.data, change.data)


def _as_one(first: Waiting, second: Waiting) -> list[Waiting]:
    """Make one change of two where it does the same to every record; the second is a patch.

    A record that has an object, with a member that neither names, wherever one of them names a field tells
    whether it does: a patch for both keeps such members in every object that it leaves.
    """
    assert second.data is not None
    if first.op != "patch":
        return [replace(second, op="put", base=first.base, data=merge_patch(first.data, second.data))]
    assert first.data is not None
    both = _laid_over(first.data, second.data)
    record = _strange(_laid_over(_branches(first.data), _branches(second.data)))
    if not same(merge_patch(record, both), merge_patch(merge_patch(record, first.data), second.data)):
        return [first, second]
    return [replace(second, base=first.base, data=both)]


def _laid_over(first: Json, second: Json) -> Json:
    both = {**first, **second}
    for name in first.keys() & second.keys():
        if isinstance(first[name], dict) and isinstance(second[name], dict):
            both[name] = _laid_over(first[name], second[name])
    return both


def _branches(patch: Json) -> Json:
    return {name: _branches(value) if isinstance(value, dict) else {} for name, value in patch.items()}


def _strange(branches: Json) -> Json:
    return {"~": 1} | {name: _strange(inner) for name, inner in branches.items()}


# -- values -------------------------------------------------------------------------------------


def _applied(op: str, data: Json | None, current: Json | None) -> Json | None:
    """Give the client's side: the record as it would stand if this change won."""
    return merge_patch(current, data) if op == "patch" else data


def _overwritten(before: Json | None, after: Json | None) -> Json | None:
    """Give what stands in one and not in the other, None for a tombstone."""
    if before is None:
        return None
    found: Json = {}
    for name, value in before.items():
        other = (after or {}).get(name, _MISSING)
        if isinstance(value, dict) and isinstance(other, dict):
            inner = _overwritten(value, other)
            if inner:
                found[name] = inner
        elif not same(value, other):
            found[name] = value
    return found


def _compact(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _standing(history: tuple[Version, ...], *, data: bool = False) -> Json:
    """Give the standing version, seq and, if asked, data as an answer has them."""
    if not history:
        answer: Json = {"version": None, "seq": None}
        return answer | {"data": None} if data else answer
    answer = {"version": len(history), "seq": history[-1].seq}
    return answer | {"data": history[-1].data} if data else answer


def _named(item: Json) -> Json:
    """Repeat an item's names; null where it has none."""
    return {name: item.get(name) if isinstance(item.get(name), str) else None for name in ("domain", "id")}


def _led_to(status: object, steps: Mapping[str, tuple[str, ...]]) -> set[str]:
    """All statuses that one or several steps lead to; any declared one from an undeclared."""
    declared = set(steps).union(*steps.values())
    if status not in declared:
        return declared
    reached = set(steps.get(str(status), ()))
    while True:
        further = reached.union(*(steps.get(one, ()) for one in reached))
        if further == reached:
            return reached
        reached = further


def _is_instant(at: object) -> bool:
    if not isinstance(at, str):
        return False
    try:
        return datetime.fromisoformat(at).tzinfo is not None
    except ValueError:
        return False


def _are_names(changed: object) -> bool:
    return isinstance(changed, list) and all(isinstance(name, str) for name in changed)


def _storable(value: object) -> bool:
    if isinstance(value, dict):
        return all("\0" not in name and _storable(inner) for name, inner in value.items())
    if isinstance(value, list):
        return all(_storable(inner) for inner in value)
    if isinstance(value, str):
        return "\0" not in value
    return type(value) is not int or value in _INT_RANGE
