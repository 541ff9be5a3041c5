"""Whether a full tenant's messages find room, and what is kept back behind one that found none.

The later changes of a device build on its earlier ones. So what a device sends of the records of a refused
message is refused as well, until that message was taken in or the time has passed after which it was to come
again. The same message passes, by its key. What it sends of other records goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from engine.model.rows import SetAsideRef, TenantUsage
from engine.plan.tenant_usage import NAMES, passed, tight
from engine.plan.work import Change, Push, Work
from engine.wire.errors import SyncError

#: Records that are kept back, with the key of the refused message that is to come first.
Behind = Mapping[SetAsideRef, str]

#: Records that are kept back for one tenant; beyond them a refused device is kept back whole.
MAX_RECORDS: Final = 4096
#: As long as a refused device is told to wait at most (``engine.runtime.rate_limit.retry_later_ms``).
_KEPT_BACK_S: Final = 90.0


class RoomState(msgspec.Struct):
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


class Room:
    """What tenants have room for, while a batch is planned.

    ``tight`` are the tenants that may have none. ``behind`` is what is kept back, as of the messages until
    now, and ``refused`` are the keys of those that found no room.
    """

    def __init__(
        self,
        usage: Mapping[int, TenantUsage],
        bounds: TenantUsage | None,
        jobs: list[Work],
        behind: Behind,
    ) -> None:
        self._usage = usage
        self._bounds = bounds
        self.tight = set() if bounds is None else tight(jobs, usage, bounds)
        self.behind = behind
        self.refused: set[str] = set()

    def kept_back(self, push: Push) -> bool:
        """Return whether a message comes behind another that was refused."""
        return any(self.behind.get(ref, push.key_hash) != push.key_hash for ref in _refs(push))

    def passed(self, push: Push, before: TenantUsage, after: TenantUsage) -> str | None:
        """Return the bound that a message passes, if any, of what the batch adds before and after it."""
        assert self._bounds is not None
        deletes = all(type(item) is Change and item.op == "delete" for item in push.items)
        return passed(self._usage[push.tenant_id], before, after, self._bounds, deletes=deletes)

    def no_room(self, push: Push, reason: str | None = None) -> SyncError:
        """Refuse a message, and keep back what comes behind it.

        Args:
            push: The message.
            reason: The sentence that its device is told, None if it comes behind another that was refused.

        Returns:
            The error that its device is told.
        """
        device, *refs = _refs(push)
        if len(self.behind) + len(refs) > MAX_RECORDS:
            refs = [device]
        self.behind = dict.fromkeys(refs, push.key_hash) | dict(self.behind)
        if reason is None:
            return SyncError(
                "insufficient_storage", "a message before this one found no room: send that one first"
            )
        self.refused.add(push.key_hash)
        return SyncError("insufficient_storage", reason)

    def taken(self, push: Push) -> None:
        """Let go what was kept back behind a message."""
        if self.behind:
            self.behind = {ref: key for ref, key in self.behind.items() if key != push.key_hash}


def _refs(push: Push) -> list[SetAsideRef]:
    """Return what stands for all that a push's device sends, and behind it the records of the push."""
    tenant_id, device_id = push.tenant_id, push.device_id
    return [
        SetAsideRef(tenant_id, device_id, "", ""),
        *[
            SetAsideRef(tenant_id, device_id, item.domain, item.id)
            for item in push.items
            if type(item) is Change
        ],
    ]


class KeptBack:
    """What is kept back from batch to batch, by tenant. Instants are monotonic seconds."""

    def __init__(self) -> None:
        self._behind: dict[int, dict[SetAsideRef, tuple[str, float]]] = {}

    def of(self, tenants: Iterable[int], now_s: float) -> Behind:
        """Return what is kept back of some tenants."""
        if not self._behind:
            return {}
        return {
            ref: key
            for tenant_id in tenants
            for ref, (key, until_s) in self._behind.get(tenant_id, {}).items()
            if until_s > now_s
        }

    def planned(self, tenants: Iterable[int], behind: Behind, refused: Iterable[str], now_s: float) -> None:
        """Take in what is kept back of some tenants after a batch, and which of it was refused in it."""
        if not behind and not self._behind:
            return
        anew = set(refused)
        for tenant_id in tenants:
            before = self._behind.pop(tenant_id, {})
            left = {
                ref: (key, now_s + _KEPT_BACK_S if key in anew or ref not in before else before[ref][1])
                for ref, key in behind.items()
                if ref.tenant_id == tenant_id
            }
            if left:
                self._behind[tenant_id] = left
