"""Whether the messages of a tenant near its limits fit, and which records a refused message blocks.

Later changes of a device build on its earlier ones. So after a message is refused, what the same device sends
of the same records is refused too, until that message was accepted, or until the time at which it should have
come again is over. The refused message itself passes, by its key. Changes of other records are not affected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from engine.model.rows import DeviceRecordKey, TenantUsage
from engine.plan.bounds.tenant_usage import NAMES, exceeded, near_limit
from engine.plan.work import Change, Push, Work
from engine.runtime.metrics import Metric, Value, gauge
from engine.wire.errors import SyncError

#: Blocked records, with the key of the refused message that has to come first.
Blocked = Mapping[DeviceRecordKey, str]

#: The most blocked records of one tenant. Beyond them a refused device is blocked for all of its records.
MAX_BLOCKED_RECORDS: Final = 4096
#: The longest time that a refused device is told to wait (``engine.runtime.rate_limit.retry_later_ms``).
_BLOCKED_FOR_S: Final = 90.0


class CapacityState(msgspec.Struct):
    """What a process knows of the space that is left.

    Attributes:
        bounds: What a tenant may hold.
        most_devices: How many devices a tenant may have.
        fullest: The most that any tenant holds of each number in ``bounds``.
        full: The reason why the database has no space for anybody, None if it has.
        free_bytes: The space on the disk of the database, None if it is not known.
        disk_bytes: The size of that disk, None if it is not known.
        held: What all tenants hold together.
        devices: The most devices that any tenant has.
        open_conflicts: The conflicts of all tenants that wait for a person, counted up to 100,000.
        files_free_bytes: The space on the disk of uploaded files, None where they are in a bucket.
        files_disk_bytes: The size of that disk.
    """

    bounds: TenantUsage
    fullest: TenantUsage
    most_devices: int = 0
    devices: int = 0
    full: str | None = None
    free_bytes: int | None = None
    disk_bytes: int | None = None
    held: TenantUsage = msgspec.field(default_factory=TenantUsage)
    open_conflicts: int = 0
    files_free_bytes: int | None = None
    files_disk_bytes: int | None = None

    def parts(self) -> dict[str, float]:
        """Return the share of each bound that the fullest tenant holds; 1 for a bound of 0."""
        numbers = zip(NAMES, self.fullest.numbers(), self.bounds.numbers(), strict=True)
        named = (*numbers, ("device_rows", self.devices, self.most_devices))
        return {name: held / bound if bound else 1.0 for name, held, bound in named}

    def metrics(self) -> Iterator[Metric]:
        """Yield what tenants hold, how full the fullest is, and how full the disks are."""
        text = "The part of a bound that the fullest tenant holds"
        yield Value("gauge", "tidemark_tenant_fullest_ratio", text, self.parts(), "bound")
        held = dict(zip(NAMES, self.held.numbers(), strict=True))
        rows = {name.removesuffix("_rows"): count for name, count in held.items() if name.endswith("_rows")}
        yield Value("gauge", "tidemark_held_rows", "Rows that all tenants hold", rows, "kind")
        sizes = {name.removesuffix("_bytes"): size for name, size in held.items() if name.endswith("_bytes")}
        yield Value("gauge", "tidemark_held_bytes", "Bytes of JSON that all tenants hold", sizes, "kind")
        yield gauge(
            "tidemark_open_conflicts",
            "Conflicts that wait for a person, counted up to 100,000",
            self.open_conflicts,
        )
        yield gauge(
            "tidemark_database_full",
            "Whether pushes and new uploads are refused for want of room",
            self.full is not None,
        )
        for name, text, size_bytes in (
            ("tidemark_database_free_bytes", "Room on the database's disk", self.free_bytes),
            ("tidemark_database_disk_bytes", "The size of the database's disk", self.disk_bytes),
            ("tidemark_files_free_bytes", "Room on the disk of uploaded files", self.files_free_bytes),
            ("tidemark_files_disk_bytes", "The size of the disk of uploaded files", self.files_disk_bytes),
        ):
            if size_bytes is not None:
                yield gauge(name, text, size_bytes)


class Capacity:
    """The limits of tenants while a batch is planned.

    ``near_limit`` are the tenants that the batch might carry past a bound. ``blocked`` are the records that
    are blocked after the messages so far, ``refused`` the keys of the messages that were refused.
    """

    def __init__(
        self,
        usage: Mapping[int, TenantUsage],
        bounds: TenantUsage | None,
        batch: list[Work],
        blocked: Blocked,
    ) -> None:
        """Make the capacity of a batch.

        Args:
            usage: What tenants hold (``Snapshot.usage``).
            bounds: What a tenant may hold. None for no limits.
            batch: The work to plan.
            blocked: The records that are blocked before the batch.
        """
        self._usage = usage
        self._bounds = bounds
        self.near_limit = set() if bounds is None else near_limit(batch, usage, bounds)
        self.blocked = blocked
        self.refused: set[str] = set()
        self._own: _BlockedNow | None = None

    def is_blocked(self, push: Push) -> bool:
        """Return whether a push changes records that another refused message blocks."""
        return any(self.blocked.get(key, push.key_hash) != push.key_hash for key in _keys(push))

    def exceeded(self, push: Push, before: TenantUsage, after: TenantUsage) -> str | None:
        """Return the name of the bound that a push exceeds, None if it exceeds none.

        Args:
            push: The message.
            before: What the batch had added before it.
            after: The same with the message.
        """
        assert self._bounds is not None
        deletes = all(type(item) is Change and item.op == "delete" for item in push.items)
        return exceeded(self._usage[push.tenant_id], before, after, self._bounds, deletes=deletes)

    def refuse(self, push: Push, reason: str | None = None) -> SyncError:
        """Refuse a push and block its records.

        Args:
            push: The message.
            reason: The sentence for its device. None if the push is blocked by an earlier refused message.

        Returns:
            The error for its device.
        """
        own = self._own_blocked()
        device, *records = _keys(push)
        if own.records[push.tenant_id] + len(records) > MAX_BLOCKED_RECORDS:
            records = [device]
        for key in records:
            own.add(key, push.key_hash)
        if reason is None:
            return SyncError(
                "insufficient_storage", "a message before this one found no room: send that one first"
            )
        self.refused.add(push.key_hash)
        return SyncError("insufficient_storage", reason)

    def unblock(self, push: Push) -> None:
        """Free the records that a push blocked, now that it was accepted."""
        if self.blocked:
            self._own_blocked().drop(push.key_hash)

    def _own_blocked(self) -> _BlockedNow:
        """Return a copy of what is blocked, to be changed. It is made once a batch, not once a message."""
        if self._own is None:
            self._own = _BlockedNow(self.blocked)
            self.blocked = self._own.blocked
        return self._own


class _BlockedNow:
    """The records that are blocked during a batch, also by the refused message, and counted by tenant."""

    __slots__ = ("_by_message", "blocked", "records")

    def __init__(self, blocked: Blocked) -> None:
        self.blocked: dict[DeviceRecordKey, str] = {}
        self.records: Counter[int] = Counter()
        self._by_message: dict[str, list[DeviceRecordKey]] = {}
        for key, message in blocked.items():
            self.add(key, message)

    def add(self, key: DeviceRecordKey, message: str) -> None:
        """Block a record, unless an earlier message blocks it."""
        if key not in self.blocked:
            self.blocked[key] = message
            self.records[key.tenant_id] += 1
            self._by_message.setdefault(message, []).append(key)

    def drop(self, message: str) -> None:
        """Unblock the records of one message."""
        for key in self._by_message.pop(message, ()):
            del self.blocked[key]
            self.records[key.tenant_id] -= 1


def _keys(push: Push) -> list[DeviceRecordKey]:
    """Return a key for all records of a push's device, then one for each record of the push."""
    tenant_id, device_id = push.tenant_id, push.device_id
    return [
        DeviceRecordKey(tenant_id, device_id, "", ""),
        *[
            DeviceRecordKey(tenant_id, device_id, item.domain, item.id)
            for item in push.items
            if type(item) is Change
        ],
    ]


class BlockedRecords:
    """The blocked records from batch to batch, by tenant. Instants are monotonic seconds."""

    def __init__(self) -> None:
        self._by_tenant: dict[int, dict[DeviceRecordKey, tuple[str, float]]] = {}

    def of(self, tenants: Iterable[int], now_s: float) -> Blocked:
        """Return the blocked records of some tenants."""
        if not self._by_tenant:
            return {}
        return {
            key: refused
            for tenant_id in tenants
            for key, (refused, until_s) in self._by_tenant.get(tenant_id, {}).items()
            if until_s > now_s
        }

    def block(self, pushes: Iterable[Push], now_s: float) -> None:
        """Block what comes behind messages for which the database itself had no room."""
        for push in pushes:
            blocked = self._by_tenant.setdefault(push.tenant_id, {})
            device, *keys = _keys(push)
            if len(blocked) + len(keys) > MAX_BLOCKED_RECORDS:
                keys = [device]
            for key in keys:
                if key not in blocked or blocked[key][1] <= now_s:
                    blocked[key] = (push.key_hash, now_s + _BLOCKED_FOR_S)

    def update(
        self,
        tenants: Iterable[int],
        blocked_before: Blocked,
        blocked: Blocked,
        refused: Iterable[str],
        now_s: float,
    ) -> None:
        """Take over what is blocked after a batch.

        Args:
            tenants: The tenants of the batch.
            blocked_before: Their blocked records as the batch found them. What was blocked since stays so: a
                full disk blocks work of tenants that another lane has in flight.
            blocked: Their blocked records after it.
            refused: The keys of the messages that were refused in it: their time starts again.
            now_s: The time.
        """
        if not blocked and not self._by_tenant:
            return
        refused_now = set(refused)
        of_tenants: dict[int, list[tuple[DeviceRecordKey, str]]] = {}
        for key, message in blocked.items():
            of_tenants.setdefault(key.tenant_id, []).append((key, message))
        for tenant_id in tenants:
            before = self._by_tenant.pop(tenant_id, {})
            left = {
                key: (message, before[key][1])
                if key in before and message not in refused_now
                else (message, now_s + _BLOCKED_FOR_S)
                for key, message in of_tenants.get(tenant_id, ())
            }
            left |= {
                key: since
                for key, since in before.items()
                if blocked_before.get(key) != since[0] and since[1] > now_s
            }
            if left:
                self._by_tenant[tenant_id] = left
