"""Checks decoded messages and makes work of them. An item at fault becomes a ``RejectedItem``."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator
from typing import Any, Final

import msgspec

from engine.model.audit import Actor
from engine.model.domains import Domains
from engine.model.rows import Conflict
from engine.model.tenants import Tenant
from engine.plan.context import MAX_FIELDS, too_many_fields
from engine.plan.work import Change, Push, RejectedItem, Resolution
from engine.wire.codec import JSON, Codec, sentence
from engine.wire.errors import SyncError
from engine.wire.messages import Item, Resolve, Sync
from engine.wire.pieces import PIECE_BYTES, decode_in_pieces
from engine.wire.steps import run_steps
from engine.wire.timestamps import corrected_us, to_us
from engine.wire.values import id_fault, unescaped_fault, value_fault, value_steps

_INT_MAX: Final = 2**63 - 1
_DAY_US: Final = 86_400_000_000

#: Looks at an item's data: for the fault of a value, None where there is none.
_Look = Callable[[dict[str, Any]], str | None]

_encode = msgspec.json.encode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Session(msgspec.Struct, kw_only=True):
    """The device of one connection or request, as its token names it.

    ``clock_offset_us`` is the server's clock minus the device's, learned from ``clock``. ``clock_known``:
    this connection or request had a ``clock``. ``retries_over`` is false on a socket until a new message was
    answered: devices send their retries first. ``issued_at_s`` is the token's ``iat``, None without one.
    ``expires_at_s`` is when the token expires, in seconds since 1970 by the server's clock. ``account`` is
    that of a command that acts in place of a device.
    """

    tenant: Tenant
    device_id: str
    session_id: str
    supervisor: bool = False
    user: str | None = None
    issued_at_s: int | None = None
    codec: Codec = JSON
    clock_offset_us: int = 0
    clock_known: bool = False
    retries_over: bool = True
    token_id: str = ""
    expires_at_s: float = math.inf
    account: Actor | None = None

    @property
    def actor(self) -> Actor:
        """Who is behind it, for the audit log."""
        if self.account is not None:
            return self.account
        return Actor("device", self.device_id) if self.user is None else Actor("user", self.user)


class MessageValidator:
    """Checks messages against the configured domains and limits.

    Args:
        domains: The configured domains.
        max_items: The most items of a ``sync``.
        max_fields: The most top-level fields of a record.
    """

    def __init__(self, domains: Domains, max_items: int, max_fields: int = MAX_FIELDS) -> None:
        self._rules = domains.rules
        self._max_items = max_items
        self._max_fields = max_fields

    def push(self, sync: Sync, session: Session, now_us: int) -> Push:
        """Check a ``sync``.

        Args:
            sync: The message.
            session: Its device and connection.
            now_us: The server's time.

        Raises:
            SyncError: ``invalid_message`` or ``too_large``: the message as a whole is refused.
        """
        raw = bytes(sync.items)
        codec = session.codec
        try:
            items = codec.items.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            checked = self._one_by_one(raw, session, now_us)
        else:
            if len(items) > self._max_items:
                raise self._too_many(len(items))
            look = value_fault if codec.binary or b"\\" in raw else unescaped_fault
            checked = [self._item(item, session, now_us, look) for item in items]
        return _push(sync, session, now_us, raw, checked)

    def push_steps(self, sync: Sync, session: Session, now_us: int) -> Generator[None, None, Push]:
        """Check a large ``sync`` as ``push`` does, in steps of ``PIECE_BYTES`` and parts of larger items."""
        raw = bytes(sync.items)
        checked: list[Change | RejectedItem] = []
        room_bytes = PIECE_BYTES
        for index, item in enumerate(self._raws(raw, session.codec)):
            room_bytes -= len(bytes(item))
            if room_bytes < 0:
                room_bytes = PIECE_BYTES
                yield
            checked.append((yield from self._large(item, index, session, now_us)))
        yield
        return _push(sync, session, now_us, raw, checked)

    def _large(
        self, raw: msgspec.Raw, index: int, session: Session, now_us: int
    ) -> Generator[None, None, Change | RejectedItem]:
        codec = session.codec
        is_large = len(bytes(raw)) > PIECE_BYTES
        try:
            if is_large and not codec.binary:
                item = yield from _in_pieces(raw)
            else:
                item = codec.item(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _refused(codec, raw, index, error)
        if not is_large:
            return self._item(item, session, now_us)
        yield
        fault = self._fault(item, None)
        if fault is None and item.op != "delete":
            fault = _of_data((yield from value_steps(item.data)))
        if fault is not None:
            return RejectedItem(item.domain, item.id, *fault)
        yield
        return _change(item, session, now_us)

    def _raws(self, raw: bytes, codec: Codec) -> list[msgspec.Raw]:
        try:
            raws: list[msgspec.Raw] = codec.raw_items.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise SyncError("invalid_message", "items: an array of objects is required") from None
        if len(raws) > self._max_items:
            raise self._too_many(len(raws))
        return raws

    def _one_by_one(self, raw: bytes, session: Session, now_us: int) -> list[Change | RejectedItem]:
        """Decode the items one by one, because one of them does not decode: only that one is rejected."""
        codec = session.codec
        checked: list[Change | RejectedItem] = []
        for index, item in enumerate(self._raws(raw, codec)):
            try:
                checked.append(self._item(codec.item(item), session, now_us))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                checked.append(_refused(codec, item, index, error))
        return checked

    def resolution(self, resolve: Resolve, session: Session, conflict: Conflict, now_us: int) -> Resolution:
        """Check a ``resolve`` of a known conflict.

        Raises:
            SyncError: ``invalid_message``.
        """
        return run_steps(self.resolution_steps(resolve, session, conflict, now_us))

    def resolution_steps(
        self, resolve: Resolve, session: Session, conflict: Conflict, now_us: int
    ) -> Generator[None, None, Resolution]:
        """Check a ``resolve`` as ``resolution`` does, in steps: its data may be as large as a message."""
        fields = None
        if resolve.choice == "merged":
            fields = resolve.data
            if type(fields) is not dict:
                raise SyncError("invalid_message", "data: an object is required")
            fault = yield from value_steps(fields)
            if fault is not None:
                raise SyncError("invalid_message", f"data: {fault}")
        decided: list[object] = [resolve.choice, resolve.version, fields]
        if resolve.changes is not None:
            decided.append(resolve.changes)
        decision = _encode(decided, order="sorted")
        return Resolution(
            session.tenant.tenant_id,
            session.device_id,
            session.actor,
            session.supervisor,
            conflict.conflict_id,
            conflict.domain,
            conflict.record_id,
            resolve.choice,
            resolve.version,
            fields,
            hashlib.sha256(decision).hexdigest(),
            now_us,
            resolve.changes,
        )

    def _too_many(self, count: int) -> SyncError:
        return SyncError("too_large", f"items: {count} of them, the limit is {self._max_items}")

    def _item(
        self, item: Item, session: Session, now_us: int, look: _Look = value_fault
    ) -> Change | RejectedItem:
        fault = self._fault(item, look)
        return _change(item, session, now_us) if fault is None else RejectedItem(item.domain, item.id, *fault)

    def _fault(self, item: Item, look: _Look | None) -> tuple[str, str] | None:
        fault = id_fault(item.id)
        if fault is not None:
            return "invalid_item", f"id: {fault}"
        rules = self._rules.get(item.domain)
        if rules is None:
            return "unknown_domain", f"no domain {item.domain[:64]!r} is configured"
        op = item.op
        if (op == "append") is rules.is_record:
            kind = "a record domain: put, patch or delete" if rules.is_record else "an event domain: append"
            return "invalid_item", f"op: {item.domain} is {kind}"
        if item.base is not None and not 1 <= item.base <= _INT_MAX:
            return "invalid_item", "base: a version from 1, or null"
        if op == "delete":
            return None
        if op == "append" and item.at is None:
            return "invalid_item", "at: required for append"
        data = item.data
        if type(data) is not dict:
            return "invalid_item", "data: an object is required"
        if len(data) > self._max_fields and rules.is_record:
            return too_many_fields(len(data), self._max_fields)
        return None if look is None else _of_data(look(data))


def _in_pieces(raw: msgspec.Raw) -> Generator[None, None, Item]:
    """Decode a large item of JSON. Raises msgspec.DecodeError, UnicodeDecodeError."""
    members = _members(raw)
    data = members.pop("data", None)
    item = JSON.item(msgspec.Raw(_encode(members)))
    if data is None:
        return item
    return msgspec.structs.replace(item, data=(yield from decode_in_pieces(bytes(data))))


def _of_data(fault: str | None) -> tuple[str, str] | None:
    return None if fault is None else ("invalid_item", f"data: {fault}")


def _change(item: Item, session: Session, now_us: int) -> Change:
    at = item.at
    sent_at_us = now_us if at is None else to_us(at)
    fields = None if item.op == "delete" else item.data
    return Change(
        item.domain,
        item.id,
        item.op,
        item.base or 0,
        now_us if at is None else corrected_us(sent_at_us, session.clock_offset_us, now_us),
        sent_at_us,
        fields,
        b"" if fields is None else _encode(fields),
        None if item.changed is None else tuple(item.changed),
        at is not None,
    )


def _push(
    sync: Sync, session: Session, now_us: int, raw: bytes, checked: list[Change | RejectedItem]
) -> Push:
    digest = hashlib.sha256(raw)
    if sync.atomic:
        digest.update(b"atomic")
    key = f"{session.device_id}\0{sync.key}".encode()
    return Push(
        session.tenant.tenant_id,
        session.device_id,
        session.session_id,
        hashlib.blake2b(key, digest_size=16).hexdigest(),
        digest.hexdigest(),
        sync.atomic,
        checked,
        raw,
        session.codec.name,
        now_us,
        not (session.clock_known and session.retries_over) or _may_be_old(checked, session, now_us),
        session.clock_offset_us,
    )


def _may_be_old(checked: list[Change | RejectedItem], session: Session, now_us: int) -> bool:
    """Return whether a message may have been sent for the first time more than a day ago.

    The device's clock is known, and the message was not sent before the time of its newest item. An item
    without ``at`` tells nothing. Neither does the time of a clock that ran days ahead and was corrected
    since. So the first messages of a socket, which may be retries, always count as old.
    """
    sent_us = [change.sent_at_us for change in checked if type(change) is Change and change.dated]
    age_us = now_us - (max(sent_us) + session.clock_offset_us) if sent_us else -1
    return not 0 <= age_us <= _DAY_US


def _refused(codec: Codec, item: msgspec.Raw, index: int, error: Exception) -> RejectedItem:
    """Return the rejection of an item that does not decode. Raises SyncError if it is no object."""
    try:
        names = codec.names.decode(item)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
        names = None
    if names is None:
        try:
            value: object = codec.any.decode(item)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
            value = {}
        if not isinstance(value, dict):
            raise SyncError("invalid_message", f"items[{index}]: an object is required")
    what = sentence(error) if isinstance(error, msgspec.ValidationError) else str(error)
    domain = names.domain if names is not None and isinstance(names.domain, str) else None
    item_id = names.id if names is not None and isinstance(names.id, str) else None
    return RejectedItem(domain, item_id, "invalid_item", what)
