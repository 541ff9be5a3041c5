"""One item of a push against the row it means: unchanged, applied, settled, held or rejected."""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from engine.conflict import Settled, Side, Standing, client_side, settle
from engine.domains import DomainPolicy
from engine.jobs import Change, Push, Refused
from engine.merge import (
    Fields,
    advance,
    created,
    decode_fields,
    encode_fields,
    same_content,
    versions_of,
)
from engine.messages import ItemError, Result
from engine.rows import Conflict, Event, EventKey, HeldRef, Record, RecordKey
from engine.rules import Policies, Rules
from engine.working import Working


def apply_item(
    push: Push, item: Change | Refused, working: Working, rules: Rules, policies: Policies
) -> Result:
    """Apply one item to the working rows and say what became of it."""
    if type(item) is Refused:
        return _rejected(item, item.code, item.message)
    assert type(item) is Change
    if item.op == "append":
        return _append(push, item, working, rules)
    key = RecordKey(push.tenant_id, item.domain, item.id)
    row = working.records.get(key)
    policy = policies[item.domain]
    if row is None:
        return _create(push, item, key, working, rules, policy)
    server = None if row.data is None else decode_fields(row.data)
    wanted = client_side(item.op, item.fields, server)
    data = item.data if item.op == "put" else _encoded(wanted)
    if row.data is None:
        unchanged = data is None
    else:
        unchanged = data is not None and same_content(data, row.data)
    if unchanged:
        return Result(
            domain=item.domain, id=item.id, status="unchanged", version=row.version, seq=row.seq
        )
    meeting = _Meeting(push, item, key, row, server, policy, working, rules)
    if item.base != row.version and not meeting.own_chain():
        return meeting.conflict()
    return meeting.write(wanted, data, item.at_us)


def _append(push: Push, item: Change, working: Working, rules: Rules) -> Result:
    assert item.fields is not None
    key = EventKey(push.tenant_id, item.domain, item.id, item.sent_at_us)
    standing = working.events.get(key)
    if standing is not None:
        if same_content(item.data, standing.data):
            return Result(domain=item.domain, id=item.id, status="unchanged")
        return _rejected(item, "invalid_item", "an event of this id and at exists with other data")
    fault = rules.fault(item.domain, item.fields, None, item.data)
    if fault is not None:
        return _rejected(item, *fault)
    event = Event(
        push.tenant_id,
        item.domain,
        item.id,
        item.sent_at_us,
        item.at_us,
        push.device_id,
        item.data,
    )
    working.append(key, event)
    return Result(domain=item.domain, id=item.id, status="applied")


def _create(
    push: Push,
    item: Change,
    key: RecordKey,
    working: Working,
    rules: Rules,
    policy: DomainPolicy,
) -> Result:
    if item.op == "delete":
        return Result(domain=item.domain, id=item.id, status="unchanged", version=None, seq=None)
    if item.op == "patch" and item.base:
        return _rejected(
            item, "unknown_base", f"there is no such record, so no version {item.base} to patch"
        )
    fields = client_side(item.op, item.fields, None)
    assert fields is not None
    data = item.data if item.op == "put" else encode_fields(fields)
    fault = rules.fault(item.domain, fields, None, data)
    if fault is not None:
        return _rejected(item, *fault)
    seq = working.next_seq(push.tenant_id)
    record = Record(
        push.tenant_id,
        item.domain,
        item.id,
        1,
        seq,
        item.at_us,
        push.device_id,
        1,
        data,
        created(fields, item.at_us) if policy.policy == "field_merge" else None,
    )
    working.put(key, record, push.session_id)
    return Result(domain=item.domain, id=item.id, status="applied", version=1, seq=seq)


class _Meeting(msgspec.Struct, gc=False):
    """A change and the record that it meets; ``server`` is the record's data, None for a tombstone."""

    push: Push
    item: Change
    key: RecordKey
    row: Record
    server: Fields | None
    policy: DomainPolicy
    working: Working
    rules: Rules

    def own_chain(self) -> bool:
        """Whether all versions after the base are this device's own and the item is no late retry."""
        item, row = self.item, self.row
        return (
            item.base < row.version
            and row.device_id == self.push.device_id
            and row.chain_from <= item.base + 1
            and item.at_us >= row.at_us
        )

    def write(self, outcome: Fields | None, data: bytes | None, at_us: int) -> Result:
        """Write the next version, unless the outcome may not be stored."""
        push, item, row = self.push, self.item, self.row
        if outcome is not None:
            assert data is not None
            fault = self.rules.fault(item.domain, outcome, self.server, data)
            if fault is not None:
                return _rejected(item, *fault)
        version = row.version + 1
        seq = self.working.next_seq(push.tenant_id)
        chained = row.device_id == push.device_id and row.chain_from <= row.version
        record = Record(
            push.tenant_id,
            item.domain,
            item.id,
            version,
            seq,
            at_us,
            push.device_id,
            row.chain_from if chained else version,
            data,
            next_versions(self.policy, row, self.server, outcome, item.at_us),
            row.attachments,
        )
        self.working.put(self.key, record, push.session_id)
        return Result(domain=item.domain, id=item.id, status="applied", version=version, seq=seq)

    def conflict(self) -> Result:
        """Settle by policy, or hold for a person; an atomic message opens no conflict."""
        item, row, policy = self.item, self.row, self.policy
        versions = None
        if policy.policy == "field_merge":
            versions = versions_of(row.fields, row.version, row.at_us)
        settled = settle(
            policy,
            self.rules.domains.rules[item.domain].domain,
            Standing(self.server, row.at_us, versions),
            Side(item.op, item.fields, item.base, item.at_us, item.changed),
        )
        if settled is None:
            return Result(
                domain=item.domain,
                id=item.id,
                status="conflict",
                conflict_id=UNSET if self.push.atomic else self._hold(),
                version=row.version,
                seq=row.seq,
                data=_raw(row.data),
            )
        if settled.winner == "server":
            self._log(self.rules.new_id(), "server", self.push.now_us)
            return self._resolved(settled, row)
        written = self.write(settled.fields, _encoded(settled.fields), settled.at_us)
        if written.status == "rejected":
            return written
        self._log(self.rules.new_id(), settled.winner, self.push.now_us)
        return self._resolved(settled, self.working.records[self.key])

    def _resolved(self, settled: Settled, stands: Record) -> Result:
        return Result(
            domain=self.item.domain,
            id=self.item.id,
            status="resolved",
            winner=settled.winner,
            policy=self.policy.policy,
            version=stands.version,
            seq=stands.seq,
            data=_raw(stands.data),
        )

    def _hold(self) -> str:
        """Open a conflict, or replace the client's side of the one this device has open."""
        push, item = self.push, self.item
        holder = HeldRef(push.tenant_id, push.device_id, item.domain, item.id)
        waiting = self.working.held.get(holder)
        if waiting is None:
            conflict_id = self.rules.new_id()
            self._log(conflict_id, "open", push.now_us)
            return conflict_id
        self._log(waiting.conflict_id, "open", waiting.opened_at_us)
        return waiting.conflict_id

    def _log(self, conflict_id: str, outcome: str, opened_at_us: int) -> None:
        push, item, row = self.push, self.item, self.row
        self.working.log(
            Conflict(
                tenant_id=push.tenant_id,
                conflict_id=conflict_id,
                domain=item.domain,
                record_id=item.id,
                device_id=push.device_id,
                policy=self.policy.policy,
                outcome=outcome,
                server_version=row.version,
                server_data=row.data,
                client_base=item.base or None,
                client_op=item.op,
                client_at_us=item.at_us,
                client_data=None if item.fields is None else item.data,
                opened_at_us=opened_at_us,
            )
        )


def next_versions(
    policy: DomainPolicy, row: Record, before: Fields | None, after: Fields | None, at_us: int
) -> bytes | None:
    """Return the field versions after a write, None where the domain is not merged by field."""
    if policy.policy != "field_merge":
        return None
    versions = versions_of(row.fields, row.version, row.at_us)
    return advance(versions, before, after, row.version + 1, at_us)


def _rejected(item: Change | Refused, code: str, message: str) -> Result:
    return Result(
        domain=item.domain, id=item.id, status="rejected", error=ItemError(code, message)
    )


def _encoded(fields: Fields | None) -> bytes | None:
    return None if fields is None else encode_fields(fields)


def _raw(data: bytes | None) -> msgspec.Raw | None:
    return None if data is None else msgspec.Raw(data)
