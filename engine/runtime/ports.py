"""What the engine needs from outside. The docstrings state the duty of whoever fulfils them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from engine.cache.device_health import DeviceKey, Health
from engine.model.domains import DomainPolicy
from engine.model.rows import Conflict, Lookups, Record, State, Writes
from engine.model.uploads import Draft, Upload, UploadRef


class StoreError(Exception):
    """The store could not do what was asked; the subclass says what is certain."""


class StoreRetryError(StoreError):
    """Nothing was written (deadlock, lock timeout, lost before COMMIT); running again may succeed."""


class StoreUnknownError(StoreError):
    """COMMIT was sent and its outcome is not known; the batch must run again under its locks."""


class StorePoisonError(StoreError):
    """PostgreSQL refused a value; nothing was written, and the same batch never succeeds."""


class StoreFullError(StoreError):
    """The database's disk is full; nothing was written, and that lasts until a person makes room."""


class StoreUnavailableError(StoreError):
    """No connection to a writable database can be had now; nothing was written."""


class Transaction(Protocol):
    """One open batch: its tenants are locked until ``commit`` or ``rollback`` returns."""

    state: State

    async def commit(self, writes: Writes) -> None:
        """Write everything and commit, in one round trip, durably (synchronous_commit = on).

        Raises StoreRetryError, StoreUnknownError, StoreFullError or StorePoisonError. A caller that is
        cancelled meanwhile does not stop a COMMIT that was sent. Either way the transaction has ended on
        return.
        """

    async def rollback(self) -> None:
        """Give the locks back without writing; never raises."""


class Store(Protocol):
    """The one seam for writing."""

    async def begin(self, lookups: Lookups) -> Transaction:
        """Open a transaction, lock its tenants and read what ``lookups`` names, in one round trip.

        Counters are locked in ascending order of ``lookups.tenants``; reads see a later snapshot than the
        lock's. A missing counter row is created. Keys past their lifetime are not found.
        Raises StoreRetryError, StoreUnavailableError, StoreFullError or StorePoisonError.
        """


class Page(msgspec.Struct, frozen=True):
    """Records ascending by seq, read in one snapshot with the tenant's counter ``high_seq``.

    ``more`` says that records after the last one were left out. ``read_to`` is the seq of the last row that
    was looked at, where the read ended there and not at the end of the feed or at ``more``.
    """

    records: list[Record]
    high_seq: int
    more: bool
    read_to: int | None = None


class FeedStore(Protocol):
    """Reads of the feed, always from the primary."""

    async def epoch(self) -> str:
        """Return the database's epoch; it changes after a restore."""

    async def heads(self, tenant_ids: list[int]) -> dict[int, int]:
        """Return how far tenants' feeds have come, in one round trip. Raises StoreError."""

    async def page(
        self, tenant_id: int, after_seq: int, domains: list[str] | None, limit: int, max_bytes: int
    ) -> Page:
        """Read records with seq above ``after_seq``.

        At most ``limit`` and about ``max_bytes`` of data, but one at least if there is any among the rows
        looked at. With ``domains`` these are bounded, and ``Page.read_to`` tells where they ended.
        Raises StoreUnavailableError.
        """

    async def rare(
        self, tenant_id: int, after_seq: int, domains: list[str], limit: int, max_bytes: int
    ) -> Page | None:
        """Read as ``page`` does, to the end of the feed, where all domains together hold few records.

        None where they hold many. Raises StoreError.
        """

    async def behind(self, afters: Mapping[int, int], limit: int, max_bytes: int) -> dict[int, Page]:
        """Read a page of each tenant in one round trip, behind the seqs by tenant_id; bounds are of each.

        Tenants without a counter may be left out. Raises StoreUnavailableError.
        """


class HeldConflict(msgspec.Struct, frozen=True):
    """An open conflict beside the record as it stands now (None only if it never existed)."""

    conflict: Conflict
    record: Record | None


class HeldConflicts(msgspec.Struct, frozen=True):
    """Some of the queue, in its order; ``more`` says that others follow."""

    found: list[HeldConflict]
    more: bool


class ConflictStore(Protocol):
    """Reads of the conflict queue."""

    async def open_conflicts(
        self, tenant_id: int, device_id: str | None, after: str | None, limit: int, max_bytes: int
    ) -> HeldConflicts:
        """List open conflicts of a device (of all with None), oldest first, after a conflict_id.

        At most ``limit``. The last one is that with which their data pass ``max_bytes``.
        """

    async def conflict(self, tenant_id: int, conflict_id: str) -> Conflict | None:
        """Find one conflict, settled or not."""


class Reused(msgspec.Struct, frozen=True):
    """When the tenant of a used name was made, and when the last tenant of the name was removed before that.

    Both in seconds since 1970, by the database's clock.
    """

    made_s: int
    removed_s: int


class Tenant(msgspec.Struct, frozen=True):
    """A customer: the wall that nothing crosses. ``reused`` is None for a name that no other tenant had."""

    tenant_id: int
    name: str
    reused: Reused | None = None


class TenantPolicies(msgspec.Struct, frozen=True):
    """A tenant and the policies set for it; domains that are missing follow the defaults."""

    tenant: Tenant
    own: dict[str, DomainPolicy]


class TenantStore(Protocol):
    """Tenants and their policies."""

    async def find(self, name: str) -> TenantPolicies | None:
        """Find a tenant by name, in one round trip."""

    async def reread(self, tenant_ids: list[int]) -> dict[int, TenantPolicies]:
        """Read tenants in one round trip; those that are no more are missing."""

    async def generation(self) -> tuple[int, str]:
        """Return the number that grows with every change of policies or revocations, and the epoch.

        A restore may bring an old number back; the epoch then tells the two apart.
        """


class HealthUnknownError(StoreUnknownError):
    """COMMIT of health was sent and its outcome is not known; ``DeviceStore.stored`` tells by the receipt."""

    def __init__(self, receipt: str) -> None:
        super().__init__("the commit of health was not confirmed")
        self.receipt = receipt


#: Of revoked tokens: stands for every tenant.
ANY_TENANT: Final = 0


class Revoked(msgspec.Struct, frozen=True):
    """What is refused, each with its tenant_id: devices, and tokens by their ``jti``.

    Of a device None refuses all tokens, a second those that were signed before it.
    """

    devices: dict[DeviceKey, int | None]
    tokens: set[tuple[int, str]]


class DeviceStore(Protocol):
    """Devices as all processes together know them."""

    async def health(self, keys: list[DeviceKey]) -> list[Health]:
        """Read several devices at once; those without a row are left out. Raises StoreError."""

    async def latest(self, limit: int) -> list[Health]:
        """Read those that synced last, the latest first. Raises StoreError."""

    async def add(self, changes: list[Health]) -> None:
        """Add to the stored counts, all or nothing, each device once and in ascending order of keys.

        A device is written down when it was ``seen``, also one that is new; one of a tenant that is no
        more is skipped. Raises HealthUnknownError when all of it may have been written; with any other
        StoreError nothing was.
        """

    async def stored(self, receipt: str) -> bool | None:
        """Say whether an ``add`` of unknown outcome was written, None while it is open. Raises StoreError."""

    async def revoked(self) -> Revoked:
        """List what is refused, in one round trip. Raises StoreError."""


class BusState(msgspec.Struct):
    """How the bus is; the counts are since the process started, in messages.

    ``connecting`` until the first attempt has come to anything, ``up`` while one's own messages come back,
    ``round_trip_s`` after how long the last one did; ``garbled`` is what came and was no message, ``doubted``
    what was of no process on this database, or of another time, ``losses`` how often the bus went away.
    """

    connecting: bool = True
    up: bool = False
    round_trip_s: float = 0.0
    published: int = 0
    received: int = 0
    garbled: int = 0
    doubted: int = 0
    losses: int = 0


class BusListener(Protocol):
    """Who is told what other processes did. Called on the event loop, and never waits."""

    def generation_moved(self) -> None:
        """Tenants, policies or revocations may have changed."""

    def moved(self, tenant_id: int, seq: int) -> None:
        """A tenant's feed has come as far as ``seq`` at least, if the sender is to be believed."""

    def opened(self, tenant_id: int, device_id: str, session_id: str, at_us: int) -> None:
        """A device connected to another process, at ``at_us`` by its clock."""

    def wanted(self, tenant_id: int, upload_id: str, holder: str) -> None:
        """Another process waits for an upload that ``holder`` has, which may be a request of this one."""

    def missed(self) -> None:
        """Anything may have happened without being told: when the bus goes, when it comes back."""


class Bus(Protocol):
    """How processes on one database tell each other what they did.

    Nothing rests on it: messages may be lost, come twice or come late, and a listener looks up what it is
    told. What goes over it is never awaited by whoever tells; while the bus is away it is dropped, and
    the others are told so when it is back.
    """

    state: BusState

    def committed(self, changes: list[tuple[Record, str]]) -> None:
        """Tell that changes (with the sessions that pushed them) are in the feeds of their tenants."""

    def opened(self, tenant_id: int, device_id: str, session_id: str, at_us: int) -> None:
        """Tell that a device is connected here since ``at_us``."""

    def wanted(self, tenant_id: int, upload_id: str, holder: str) -> None:
        """Ask the request that has an upload to give it back."""

    async def run(self, listener: BusListener) -> None:
        """Be on the bus until cancelled, coming back to it whenever it was lost. One's own is not heard."""

    async def drain(self) -> None:
        """Wait until the others were told what there is to tell, unless the bus is away."""


class Clock(Protocol):
    """The time, as an argument."""

    def now_us(self) -> int:
        """Microseconds since 1970-01-01 UTC."""

    def monotonic_s(self) -> float:
        """Seconds that never go backwards, for durations."""


class WorkClock(Clock, Protocol):
    """The time, and the work of this thread."""

    def cpu_s(self) -> float:
        """Seconds that the processor worked for this thread: a host that stands still adds none."""


class WaitingFile(msgspec.Struct, frozen=True):
    """A stored file that is not in its record's entry yet. ``due`` says that the record is there now."""

    upload: Upload
    due: bool


class WaitingStore(Protocol):
    """Files that are stored before their records."""

    async def tenants(self, after: int, limit: int) -> list[int]:
        """List tenants that have any, ascending and behind ``after``. Raises StoreError."""

    async def waiting(self, behind: Mapping[int, Upload | None], limit: int) -> list[WaitingFile]:
        """List some tenants' files, ``limit`` of each, in one round trip.

        They come in an order that stays, those of a tenant behind the one that is given for it. Raises
        StoreError.
        """


class FileStore(Protocol):
    """Reads of files."""

    async def file(self, tenant_id: int, file_id: str) -> Upload | None:
        """Find the finished upload that has the bytes of ``file_id``.

        Of a duplicate that is the file which its record has in its stead. Raises StoreError.
        """


class BlobsError(Exception):
    """Bytes could not be kept or given; trying again may succeed."""


class BlobsFullError(BlobsError):
    """There is no room; what was acknowledged stays."""


class BlobMissingError(BlobsError):
    """There are no such bytes."""


class Content(msgspec.Struct, frozen=True):
    """What was found in drafts, one after another: ``sha256`` in hex digits, and the first 8 KiB."""

    sha256: str
    head: bytes


class Appending(Protocol):
    """Bytes on their way behind a draft, by one request. Not for two tasks at once."""

    async def write(self, blocks: Sequence[bytes]) -> None:
        """Take bytes; they may be lost until ``flush`` returns. Raises BlobsError, BlobsFullError."""

    async def flush(self, blocks: Sequence[bytes] = ()) -> tuple[str, ...]:
        """Take bytes, and have all that came durable on return.

        Gives the names of the pieces that were made since the last flush, none where the store needs none.
        Raises BlobsError, BlobsFullError.
        """

    def digest(self) -> bytes:
        """Give the hash of all that came, by the algorithm that was asked for. After ``flush``."""

    async def close(self) -> None:
        """End it; what was not flushed need not be kept. Never raises."""


class Blobs(Protocol):
    """Bytes of uploads, then files. No name is a path that a client chose: all are ids of ours.

    What stands behind a draft's ``size_bytes`` is nobody's: it was never acknowledged. No method keeps the
    event loop busy.
    """

    def appending(self, draft: Draft, algorithm: str | None = None) -> Appending:
        """Append behind a draft; ``algorithm`` (``hashlib``'s name) is of ``digest``."""

    async def renew(self, draft: Draft, generation: int) -> None:
        """Make what is acknowledged of a draft that of a later generation.

        Whoever still writes to the earlier one writes to nothing that is read. Raises BlobsError.
        """

    async def inspect(self, drafts: Sequence[Draft], file: UploadRef) -> Content:
        """Read drafts in order, or ``file`` if they were published by now. Raises BlobsError."""

    async def publish(self, drafts: Sequence[Draft], file: UploadRef) -> None:
        """Make drafts in order a file, at once or not at all; durable on return.

        Doing it again does no harm. Of one draft nothing is left; several stay. Raises BlobsError.
        """

    def read(self, file: UploadRef, first_byte: int, count_bytes: int) -> AsyncIterator[bytes]:
        """Read part of a file, in blocks. Raises BlobMissingError, BlobsError."""

    async def drop_draft(self, ref: UploadRef) -> None:
        """Remove a draft in all its generations, if there is one. Raises BlobsError."""

    async def drop_file(self, file: UploadRef) -> None:
        """Remove a file, if there is one. Raises BlobsError."""

    def kept(self, before_us: int) -> AsyncIterator[list[Kept]]:
        """List drafts and files that were last written before an instant, some at a time."""


class Kept(msgspec.Struct, frozen=True):
    """Something that takes room: a draft, or a file."""

    ref: UploadRef
    is_file: bool
    size_bytes: int
