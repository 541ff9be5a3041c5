"""One item of a push against its row: unchanged, applied, resolved, held for a person, or rejected."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from engine.model.domains import DomainPolicy
from engine.model.merge import (
    Fields,
    Sent,
    created,
    decode_fields,
    encode_fields,
    replaced,
    same_content,
    same_value,
    smallest,
)
from engine.model.rows import (
    Conflict,
    DeviceRecordKey,
    Event,
    EventKey,
    HeldChange,
    OpenConflictRef,
    Record,
    RecordKey,
)
from engine.plan.conflict import ClientChange, Decision, ServerRecord, client_side, decide, may_hold
from engine.plan.context import PlanContext, Policies
from engine.plan.held_changes import MAX_CHANGES, changes_of, fold
from engine.plan.own_order import follows, is_own, sent_at_us_to_store
from engine.plan.unit_of_work import UnitOfWork
from engine.plan.versions import known_versions, last_data, next_versions
from engine.plan.work import Change, Push, RejectedItem
from engine.wire.messages import ItemError, Result

#: Makes a named tuple in half the time that its class takes.
_new = tuple.__new__


def apply_item(
    push: Push, item: Change | RejectedItem, unit: UnitOfWork, context: PlanContext, policies: Policies
) -> Result:
    """Apply one item to the rows and return its result."""
    if type(item) is RejectedItem:
        return _rejected(item, item.code, item.message)
    assert type(item) is Change
    if item.op == "append":
        return _append(push, item, unit, context)
    key = _new(RecordKey, (push.tenant_id, item.domain, item.id))
    row = unit.records.get(key)
    policy = policies[item.domain]
    if row is None:
        return _create(push, item, key, unit, context, policy)
    server = None if row.data is None else unit.decoded.decode(key, row.data)
    wanted = client_side(item.op, item.fields, server)
    data = item.data if item.op == "put" else _encoded(wanted, key, unit)
    if row.data is None:
        unchanged = data is None
    else:
        # Equal contents have equal lengths, because both are compact JSON. Both are decoded already, which is
        # the expensive part.
        unchanged = data is not None and (
            data == row.data or (len(data) == len(row.data) and same_value(wanted, server))
        )
    if unchanged and not unit.open_conflicts:
        return _unchanged(item, row)
    change = _ChangeOnRecord(push, item, key, row, server, wanted, policy, unit, context)
    if item.base != row.version and not change.own_chain():
        open_conflict = change.open_conflict()
        if open_conflict is not None:
            return change.join(open_conflict)
        if not unchanged:
            return change.conflict()
    return _unchanged(item, row) if unchanged else change.write(wanted, data, item.at_us)


def _unchanged(item: Change, row: Record) -> Result:
    return Result(domain=item.domain, id=item.id, status="unchanged", version=row.version, seq=row.seq)


def _append(push: Push, item: Change, unit: UnitOfWork, context: PlanContext) -> Result:
    assert item.fields is not None
    key = EventKey(push.tenant_id, item.domain, item.id, item.sent_at_us)
    standing = unit.events.get(key)
    if standing is not None:
        if same_content(item.data, standing.data):
            return Result(domain=item.domain, id=item.id, status="unchanged")
        return _rejected(item, "invalid_item", "an event of this id and at exists with other data")
    fault = context.violation(item.domain, item.fields, None, item.data)
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
    unit.append(key, event, push.now_us)
    return Result(domain=item.domain, id=item.id, status="applied")


def _create(
    push: Push,
    item: Change,
    key: RecordKey,
    unit: UnitOfWork,
    context: PlanContext,
    policy: DomainPolicy,
) -> Result:
    if item.op == "delete":
        return Result(domain=item.domain, id=item.id, status="unchanged", version=None, seq=None)
    if item.op == "patch" and item.base:
        return _rejected(item, "unknown_base", f"there is no such record, so no version {item.base} to patch")
    if item.op == "patch" and unit.was_rejected(
        DeviceRecordKey(push.tenant_id, push.device_id, item.domain, item.id)
    ):
        return _rejected(
            item,
            "creation_rejected",
            "there is no such record, and what this device sent of it before was rejected:"
            " send the whole record as a put",
        )
    fields = client_side(item.op, item.fields, None)
    assert fields is not None
    data = item.data if item.op == "put" else encode_fields(fields)
    fault = context.violation(item.domain, fields, None, data)
    if fault is not None:
        return _rejected(item, *fault)
    seq = unit.next_seq(push.tenant_id)
    sent_at_us = sent_at_us_to_store(item, None, push.device_id)
    by_field = policy.policy == "field_merge"
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
        created(fields, item.at_us, Sent(push.device_id, sent_at_us)) if by_field else None,
        sent_at_us=sent_at_us,
    )
    unit.put(key, record, push.session_id)
    return Result(domain=item.domain, id=item.id, status="applied", version=1, seq=seq)


class _ChangeOnRecord(msgspec.Struct, gc=False):
    """A change of a record that exists.

    ``server`` is the record's data, ``wanted`` the data if the change wins. None is a tombstone.
    """

    push: Push
    item: Change
    key: RecordKey
    row: Record
    server: Fields | None
    wanted: Fields | None
    policy: DomainPolicy
    unit: UnitOfWork
    context: PlanContext

    def own_chain(self) -> bool:
        """Return whether all versions after the base are this device's own and the item is no late retry."""
        item, row = self.item, self.row
        return (
            item.base < row.version
            and row.device_id == self.push.device_id
            and row.chain_from <= item.base + 1
            and follows(item, row)
        )

    def write(self, outcome: Fields | None, data: bytes | None, at_us: int, *, won: bool = False) -> Result:
        """Write the next version. The result is ``rejected`` if the outcome breaks a rule."""
        push, item, row = self.push, self.item, self.row
        if outcome is not None:
            assert data is not None
            fault = self.context.violation(item.domain, outcome, self.server, data)
            if fault is not None:
                return _rejected(item, *fault)
        version = row.version + 1
        seq = self.unit.next_seq(push.tenant_id)
        chained = is_own(row, push.device_id)
        sent_at_us = sent_at_us_to_store(item, row, push.device_id, won=won)
        versions = None
        if self.policy.policy == "field_merge":
            sent = Sent(push.device_id, item.sent_at_us if item.dated else sent_at_us)
            versions = next_versions(self.policy, row, self.server, outcome, item.at_us, sent)
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
            versions,
            row.attachments,
            sent_at_us,
            last_data(self.context, row, data),
        )
        self.unit.put(self.key, record, push.session_id)
        return Result(domain=item.domain, id=item.id, status="applied", version=version, seq=seq)

    def open_conflict(self) -> Conflict | None:
        """Return the open conflict of this device on the record, if the policy can leave one to a person.

        Under other policies an open conflict is of a tombstone whose last data are gone. Only changes that
        have to be held join it, so it must not be found here.
        """
        held = self.unit.open_conflicts
        return held.get(self._conflict_ref()) if held and may_hold(self.policy) else None

    def _conflict_ref(self) -> OpenConflictRef:
        return OpenConflictRef(self.push.tenant_id, self.push.device_id, self.item.domain, self.item.id)

    def join(self, open_conflict: Conflict) -> Result:
        """Add the change to the open conflict, whatever its outcome would be: it builds on the changes there.

        A change of an atomic message is not added: such a message opens no conflict either. An item without
        ``at`` comes after all changes before it, because the server's clock cannot be compared with the
        device's.
        """
        item = self.item
        held = changes_of(open_conflict)
        sent_at_us = item.sent_at_us if item.dated else held[-1].sent_at_us
        change = HeldChange(item.op, item.base or None, item.at_us, sent_at_us, _own_data(item))
        limit_bytes = self.context.record_bytes
        changes = fold(held, change, limit_bytes)
        if changes is None:
            return _rejected(
                item,
                "too_large",
                f"the changes held in conflict {open_conflict.conflict_id} would pass {limit_bytes} bytes"
                f" or {MAX_CHANGES} changes: settle it, then send this one again",
            )
        if self.push.atomic:
            return self._conflict_result(UNSET)
        if changes is not held:
            self.unit.log_conflict(
                msgspec.structs.replace(
                    open_conflict, client_changes=changes, client_count=open_conflict.client_count + 1
                )
            )
        joined = self._log_row(self.context.new_id(), "held", self._replaced())
        self.unit.log_conflict(
            msgspec.structs.replace(joined, client_sent_at_us=sent_at_us, held_in=open_conflict.conflict_id)
        )
        return self._conflict_result(open_conflict.conflict_id)

    def _conflict_result(self, conflict_id: str | UnsetType) -> Result:
        row = self.row
        return Result(
            domain=self.item.domain,
            id=self.item.id,
            status="conflict",
            conflict_id=conflict_id,
            version=row.version,
            seq=row.seq,
            data=_raw(row.data),
        )

    def conflict(self) -> Result:
        """Decide by policy, or hold the change for a person. An atomic message opens no conflict."""
        item, row, policy = self.item, self.row, self.policy
        versions = None
        if policy.policy == "field_merge":
            versions = known_versions(row)
        device_id = self.push.device_id
        sent_at_us = item.sent_at_us if item.dated else None
        followed = follows(item, row) if is_own(row, device_id) else None
        decision = decide(
            policy,
            self.context.domains.rules[item.domain].domain,
            ServerRecord(self.server, row.at_us, versions, followed, self._last_fields()),
            ClientChange(item.op, item.fields, item.base, item.at_us, item.changed, device_id, sent_at_us),
        )
        if decision is None:
            open_conflict = None if may_hold(policy) else self.unit.find_open_conflict(self._conflict_ref())
            if open_conflict is not None:
                return self.join(open_conflict)
            if self.push.atomic:
                return self._conflict_result(UNSET)
            opened = self._log_row(self.context.new_id(), "open", self._replaced())
            self.unit.log_conflict(opened)
            return self._conflict_result(opened.conflict_id)
        if decision.winner == "server":
            self.unit.log_conflict(self._log_row(self.context.new_id(), decision.winner, self._replaced()))
            return self._resolved(decision, row)
        data = _encoded(decision.fields, self.key, self.unit)
        written = self.write(decision.fields, data, decision.at_us, won=True)
        if written.status == "rejected":
            return written
        overwritten = self._differs_from(decision.fields)
        self.unit.log_conflict(self._log_row(self.context.new_id(), decision.winner, overwritten))
        return self._resolved(decision, self.unit.records[self.key])

    def _last_fields(self) -> Fields | None:
        """Return a tombstone's last data. They are decoded for a patch only: nothing else needs them."""
        last = self.row.last_data
        return None if last is None or self.item.op != "patch" else decode_fields(last)

    def _resolved(self, decision: Decision, current: Record) -> Result:
        return Result(
            domain=self.item.domain,
            id=self.item.id,
            status="resolved",
            winner=decision.winner,
            policy=self.policy.policy,
            version=current.version,
            seq=current.seq,
            data=_raw(current.data),
        )

    def _replaced(self) -> bytes | None:
        """Return the data that the change would have replaced, up to the limit of the log.

        The record itself still has all of it. Without a limit, each change of 70 bytes could log 250 KiB.
        """
        data = self._differs_from(self.wanted)
        limit_bytes = self.context.kept_data_bytes
        if data is None or len(data) <= limit_bytes:
            return data
        assert self.server is not None
        return encode_fields(smallest(replaced(self.server, self.wanted or {}), limit_bytes))

    def _differs_from(self, outcome: Fields | None) -> bytes | None:
        """Return the record's members that an outcome changes or lacks, None for a tombstone."""
        return None if self.server is None else encode_fields(replaced(self.server, outcome or {}))

    def _log_row(self, conflict_id: str, outcome: str, server_data: bytes | None) -> Conflict:
        push, item, row = self.push, self.item, self.row
        return Conflict(
            tenant_id=push.tenant_id,
            conflict_id=conflict_id,
            domain=item.domain,
            record_id=item.id,
            device_id=push.device_id,
            policy=self.policy.policy,
            outcome=outcome,
            server_version=row.version,
            server_data=server_data,
            client_base=item.base or None,
            client_op=item.op,
            client_at_us=item.at_us,
            client_data=_own_data(item),
            client_sent_at_us=sent_at_us_to_store(item, None, push.device_id),
            opened_at_us=push.now_us,
        )


def _own_data(item: Change) -> bytes | None:
    return None if item.fields is None else item.data


def _rejected(item: Change | RejectedItem, code: str, message: str) -> Result:
    return Result(domain=item.domain, id=item.id, status="rejected", error=ItemError(code, message))


def _encoded(fields: Fields | None, key: RecordKey, unit: UnitOfWork) -> bytes | None:
    return None if fields is None else unit.decoded.encode(key, fields)


def _raw(data: bytes | None) -> msgspec.Raw | None:
    return None if data is None else msgspec.Raw(data)
