"""The health of devices: counts of their syncs, and the score made of them.

Several processes may count the same device, one after the other or at the same time. So each process keeps
its own unsaved counts apart from the stored ones, and the store adds them up.
"""

from __future__ import annotations

import sys
from typing import Final, NamedTuple

import msgspec

from engine.cache.device_clock import DeviceClock
from engine.runtime.loop_share import LoopShare
from engine.runtime.rate_limit import TokenBucket

_HOUR_US = 3_600_000_000
#: Facts of heartbeats are stored at least this often, and at once if the queue's depth changed. Batteries and
#: free storage change all the time: to store each change would write a row a heartbeat.
_FACTS_US: Final = 300_000_000


class DeviceKey(NamedTuple):
    """One device. Keys compare by their fields; rows are locked in this order."""

    tenant_id: int
    device_id: str


class Counts(msgspec.Struct, gc=False):
    """``failed`` syncs were answered with an error; ``conflicts`` counts items that met one.

    ``duration_us`` is the time from arrival to answer, added up over all syncs.
    """

    syncs: int = 0
    failed: int = 0
    duration_us: int = 0
    conflicts: int = 0

    def plus(self, other: Counts) -> Counts:
        """Return the sums."""
        return Counts(
            self.syncs + other.syncs,
            self.failed + other.failed,
            self.duration_us + other.duration_us,
            self.conflicts + other.conflicts,
        )


class Facts(msgspec.Struct, frozen=True):
    """What a device told about itself in heartbeats, the last of them at ``at_us``; None was never told.

    ``battery`` is 0 to 1.
    """

    at_us: int
    battery: float | None = None
    queue_depth: int | None = None
    storage_free_mb: float | None = None


class Health(msgspec.Struct, frozen=True):
    """The stored health of a device, or a change to it.

    In a change, ``counts`` are differences, ``last_sync_at_us`` and ``facts`` replace earlier ones, and what
    is None changes nothing. ``seen``: the device introduced itself or came back. ``user_id`` is that of its
    last token. Facts and the user are not read back.
    """

    key: DeviceKey
    counts: Counts
    last_sync_at_us: int | None = None
    network_type: str | None = None
    app_version: str | None = None
    os_version: str | None = None
    seen: bool = False
    facts: Facts | None = None
    user_id: str | None = None


#: Shared by all devices without stored counts, because stored counts are replaced, never changed in place.
_NOTHING = Counts()


class Device(msgspec.Struct, kw_only=True, gc=False):
    """One device in the memory of this process.

    A device that has something to store puts itself into ``changed``.

    - ``user_id``: the user of its last token; None if that names none.
    - ``stored``: the counts that the store had at the last read.
    - ``unsaved``: the counts since then that are not stored yet; None if there are none.
    - ``read_at_s``: the monotonic time of the last read from the store; None before the first one.
    - ``saved_generation``: numbers the last moment at which a change of it may have been on its way to the
      store (``engine.cache.devices``).
    - ``known``: it has a row in the store, and its tenant counts it. ``refused``: there was no room for one.
      ``refused_until_s``: until then the store is not asked again.
    - ``facts``: what its heartbeats to this process told; None before the first one. ``facts_due_us``: from
      when on they are stored again. ``has_new_facts``: they are to be stored with the next change.
    - ``clock``: None until the device sends the time that its own clock shows. It is never stored.
    - ``share``: its share of the loop's time; None until it took a millisecond.
    - ``handshakes``: limits the handshakes of its sockets; None before the first one.
    - ``telemetry``: limits its ``telemetry`` messages; None before the first one.
    """

    key: DeviceKey
    bucket: TokenBucket
    changed: list[Device]
    stored: Counts = msgspec.field(default_factory=lambda: _NOTHING)
    unsaved: Counts | None = None
    last_sync_at_us: int | None = None
    network_type: str | None = None
    app_version: str | None = None
    os_version: str | None = None
    user_id: str | None = None
    seen: bool = False
    seen_at_s: float | None = None
    read_at_s: float | None = None
    saved_generation: int = 0
    known: bool = False
    refused: bool = False
    refused_until_s: float = 0.0
    facts: Facts | None = None
    facts_due_us: int = 0
    has_new_facts: bool = False
    clock: DeviceClock | None = None
    share: LoopShare | None = None
    handshakes: TokenBucket | None = None
    telemetry: TokenBucket | None = None

    @property
    def counts(self) -> Counts:
        """The stored and the unsaved counts together."""
        return self.stored if self.unsaved is None else self.stored.plus(self.unsaved)

    def synced(self, now_us: int, duration_us: int, conflicts: int) -> None:
        """Count a sync that was answered with results."""
        unsaved = self.unsaved or self._begin_unsaved()
        unsaved.syncs += 1
        unsaved.duration_us += duration_us
        unsaved.conflicts += conflicts
        self.last_sync_at_us = now_us

    def failed(self, duration_us: int) -> None:
        """Count a sync that was answered with an error."""
        unsaved = self.unsaved or self._begin_unsaved()
        unsaved.syncs += 1
        unsaved.failed += 1
        unsaved.duration_us += duration_us

    def introduce(self, *, network_type: str | None, app_version: str | None, os_version: str | None) -> None:
        """Note the versions and the network that a device tells; values that it leaves out stay."""
        said = (
            _shared(network_type or self.network_type),
            _shared(app_version or self.app_version),
            _shared(os_version or self.os_version),
        )
        if said != (self.network_type, self.app_version, self.os_version):
            self.network_type, self.app_version, self.os_version = said
            self.note()

    def report(self, told: Facts) -> None:
        """Note the facts of a heartbeat; those that it leaves out stay."""
        known = self.facts
        if known is not None:
            told = Facts(
                told.at_us,
                known.battery if told.battery is None else told.battery,
                known.queue_depth if told.queue_depth is None else told.queue_depth,
                known.storage_free_mb if told.storage_free_mb is None else told.storage_free_mb,
            )
        self.facts = told
        if told.at_us >= self.facts_due_us or known is None or told.queue_depth != known.queue_depth:
            self.facts_due_us = told.at_us + _FACTS_US
            self.has_new_facts = True
            if self.unsaved is None:
                self._begin_unsaved()

    def note(self) -> None:
        """Have it stored that the device was seen, with its versions and network."""
        self.seen = True
        if self.unsaved is None:
            self._begin_unsaved()

    def _begin_unsaved(self) -> Counts:
        self.unsaved = unsaved = Counts()
        self.changed.append(self)
        return unsaved

    def take_unsaved(self) -> Health:
        """Return the change to store, and count it as stored. If storing it fails, call ``restore``."""
        unsaved = self.unsaved or Counts()
        self.stored, self.unsaved = self.stored.plus(unsaved), None
        seen, self.seen = self.seen, False
        facts = self.facts if self.has_new_facts else None
        self.has_new_facts = False
        if not seen:
            return Health(self.key, unsaved, self.last_sync_at_us, facts=facts, user_id=self.user_id)
        return Health(
            self.key,
            unsaved,
            self.last_sync_at_us,
            self.network_type,
            self.app_version,
            self.os_version,
            seen=True,
            facts=facts,
            user_id=self.user_id,
        )

    def restore(self, taken: Health) -> None:
        """Count a change as unsaved again, because it was not stored."""
        counts = taken.counts
        stored = self.stored
        self.stored = Counts(
            stored.syncs - counts.syncs,
            stored.failed - counts.failed,
            stored.duration_us - counts.duration_us,
            stored.conflicts - counts.conflicts,
        )
        self.unsaved = counts.plus(self.unsaved or self._begin_unsaved())
        self.seen = self.seen or taken.seen
        self.has_new_facts = self.has_new_facts or taken.facts is not None

    def read(self, stored: Health | None, now_s: float) -> None:
        """Note the stored health; None if the device has no row."""
        self.read_at_s = now_s
        self.known, self.refused = True, False
        if stored is None:
            self.stored = _NOTHING
            return
        self.stored = stored.counts
        if stored.last_sync_at_us is not None:
            self.last_sync_at_us = max(stored.last_sync_at_us, self.last_sync_at_us or 0)
        said = self if self.seen else stored
        self.network_type = _shared(said.network_type or stored.network_type)
        self.app_version = _shared(said.app_version or stored.app_version)
        self.os_version = _shared(said.os_version or stored.os_version)

    def refuse(self, until_s: float) -> None:
        """Note that its tenant has no room for it. Nothing of it is stored."""
        self.refused, self.refused_until_s = True, until_s
        self.unsaved, self.seen = None, False

    def accept(self) -> None:
        """Note that it has a row."""
        self.known = True
        if self.refused:
            self.refused = False
            self.note()

    def health_score(self, now_us: int) -> int:
        """Return the score, 0 to 100, at ``now_us``: the score of a silent device sinks."""
        return score(self.counts, self.last_sync_at_us, now_us)


def _shared(text: str | None) -> str | None:
    """Return one shared object for equal texts: many devices have the same version."""
    return None if text is None else sys.intern(text)


def score(counts: Counts, last_sync_at_us: int | None, now_us: int) -> int:
    """Return the score, 0 to 100, of counts. A device whose syncs all failed has no recent sync."""
    if last_sync_at_us is None:
        silent_hours = 24.0 if counts.syncs else 0.0
    else:
        silent_hours = max(0, now_us - last_sync_at_us) / _HOUR_US
    return health_score(counts.syncs, counts.failed, counts.conflicts, silent_hours)


def health_score(total: int, failed: int, conflicts: int, silent_hours: float) -> int:
    """Return the score: 60 points for success, 20 for a recent sync, 20 for few conflicts.

    It is 100 before the first sync.
    """
    if total == 0:
        return 100
    success = 60 * (total - failed) / total
    recent = max(0.0, 20 - 20 * silent_hours / 24)
    agreed = max(0.0, 20 - 20 * conflicts / total)
    return round(success + recent + agreed)
