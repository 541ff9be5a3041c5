"""Whether a full tenant's messages find room, and what is kept back blocked one that found none.

The later changes of a device build on its earlier ones. So what a device sends of the records of a refused
message is refused as well, until that message was taken in or the time has passed after which it was to come
again. The same message passes, by its key. What it sends of other records goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from engine.model.rows import DeviceRecordKey, TenantUsage
from engine.plan.tenant_usage import NAMES, exceeded, near_limit
from engine.plan.work import Change, Push, Work
from engine.runtime.metrics import Metric, Value, gauge
from engine.wire.errors import SyncError

#: Records that are kept back, with the key of the refused message that is to come first.
Blocked = Mapping[DeviceRecordKey, str]

#: Records that are kept back for one tenant; beyond them a refused device is kept back whole.
MAX_BLOCKED_RECORDS: Final = 4096
#: As long as a refused device is told to wait at most (``engine.runtime.rate_limit.retry_later_ms``).
_BLOCKED_FOR_S: Final = 90.0


class CapacityState(msgspec.Struct):
    """What a process knows of the room that is left.

    ``fullest`` is the most that any tenant holds of each, to be held against ``bounds``. ``full`` says in a
    sentence that the database's disk has no room for anybody, None while it has; ``free_bytes`` is what is
    left there, None where it cannot be told.
    """

    bounds: TenantUsage
    fullest: TenantUsage
    full: str | None = None
    free_bytes: int | None = None

    def parts(self) -> dict[str, float]:
        """Return what part of each bound the fullest tenant holds; of a bound of 0, 1."""
        numbers = zip(NAMES, self.fullest.numbers(), self.bounds.numbers(), strict=True)
        return {name: held / bound if bound else 1.0 for name, held, bound in numbers}

    def metrics(self) -> Iterator[Metric]:
        """Yield how full the fullest tenant and the disk are."""
        text = "The part of a bound that the fullest tenant holds"
        yield Value("gauge", "tidemark_tenant_fullest_ratio", text, self.parts(), "bound")
        if self.free_bytes is not None:
            yield gauge("tidemark_database_free_bytes", "Room on the database's disk", self.free_bytes)


class Capacity:
    """What tenants have room for, while a batch is planned.

    ``tight`` are the tenants that may have none. ``blocked`` is what is kept back, as of the messages until
    now, and ``refused`` are the keys of those that found no room.
    """

    def __init__(
        self,
        usage: Mapping[int, TenantUsage],
        bounds: TenantUsage | None,
        batch: list[Work],
        blocked: Blocked,
    ) -> None:
        self._usage = usage
        self._bounds = bounds
        self.near_limit = set() if bounds is None else near_limit(batch, usage, bounds)
        self.blocked = blocked
        self.refused: set[str] = set()
        self._own: _Own | None = None

    def is_blocked(self, push: Push) -> bool:
        """Return whether a message comes blocked another that was refused."""
        return any(self.blocked.get(ref, push.key_hash) != push.key_hash for ref in _refs(push))

    def exceeded(self, push: Push, before: TenantUsage, after: TenantUsage) -> str | None:
        """Return the bound that a message passes, if any, of what the batch adds before and after it."""
        assert self._bounds is not None
        deletes = all(type(item) is Change and item.op == "delete" for item in push.items)
        return exceeded(self._usage[push.tenant_id], before, after, self._bounds, deletes=deletes)

    def refuse(self, push: Push, reason: str | None = None) -> SyncError:
        """Refuse a message, and keep back what comes blocked it.

        Args:
            push: The message.
            reason: The sentence that its device is told, None if it comes blocked another that was refused.

        Returns:
            The error that its device is told.
        """
        own = self._owned()
        device, *refs = _refs(push)
        if own.records[push.tenant_id] + len(refs) > MAX_BLOCKED_RECORDS:
            refs = [device]
        for ref in refs:
            own.add(ref, push.key_hash)
        if reason is None:
            return SyncError(
                "insufficient_storage", "a message before this one found no room: send that one first"
            )
        self.refused.add(push.key_hash)
        return SyncError("insufficient_storage", reason)

    def unblock(self, push: Push) -> None:
        """Let go what a message has blocked."""
        if self.blocked:
            self._owned().drop(push.key_hash)

    def _owned(self) -> _Own:
        """Return what is blocked, to be changed: it is gone through once a batch, not once a message."""
        if self._own is None:
            self._own = _Own(self.blocked)
            self.blocked = self._own.blocked
        return self._own


class _Own:
    """What is blocked in one batch, also by the message that is to come first, and counted by tenant."""

    __slots__ = ("_of_keys", "blocked", "records")

    def __init__(self, blocked: Blocked) -> None:
        self.blocked: dict[DeviceRecordKey, str] = {}
        self.records: Counter[int] = Counter()
        self._of_keys: dict[str, list[DeviceRecordKey]] = {}
        for ref, key in blocked.items():
            self.add(ref, key)

    def add(self, ref: DeviceRecordKey, key: str) -> None:
        """Block a record, unless an earlier message does."""
        if ref not in self.blocked:
            self.blocked[ref] = key
            self.records[ref.tenant_id] += 1
            self._of_keys.setdefault(key, []).append(ref)

    def drop(self, key: str) -> None:
        """Let go what one message blocks."""
        for ref in self._of_keys.pop(key, ()):
            del self.blocked[ref]
            self.records[ref.tenant_id] -= 1


def _refs(push: Push) -> list[DeviceRecordKey]:
    """Return what stands for all that a push's device sends, and blocked it the records of the push."""
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
    """What is kept back from batch to batch, by tenant. Instants are monotonic seconds."""

    def __init__(self) -> None:
        self._behind: dict[int, dict[DeviceRecordKey, tuple[str, float]]] = {}

    def of(self, tenants: Iterable[int], now_s: float) -> Blocked:
        """Return what is kept back of some tenants."""
        if not self._behind:
            return {}
        return {
            ref: key
            for tenant_id in tenants
            for ref, (key, until_s) in self._behind.get(tenant_id, {}).items()
            if until_s > now_s
        }

    def update(self, tenants: Iterable[int], blocked: Blocked, refused: Iterable[str], now_s: float) -> None:
        """Take in what is kept back of some tenants after a batch, and which of it was refused in it."""
        if not blocked and not self._behind:
            return
        anew = set(refused)
        of_tenants: dict[int, list[tuple[DeviceRecordKey, str]]] = {}
        for ref, key in blocked.items():
            of_tenants.setdefault(ref.tenant_id, []).append((ref, key))
        for tenant_id in tenants:
            before = self._behind.pop(tenant_id, {})
            left = {
                ref: (key, now_s + _BLOCKED_FOR_S if key in anew or ref not in before else before[ref][1])
                for ref, key in of_tenants.get(tenant_id, ())
            }
            if left:
                self._behind[tenant_id] = left
