"""Admission: the one decision whether a device may send now, for sockets, HTTP and uploads alike.

It meets no clock and no network; time is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Literal, NamedTuple, Protocol, get_args

from engine.commit.overload import overloaded
from engine.runtime.metrics import Metric, Value
from engine.runtime.rate_limit import TenantRates, TokenBucket, retry_later_ms
from engine.wire.errors import SyncError

#: Handshakes that are accepted while accepted writes have to wait.
NEWCOMERS_PER_MINUTE: Final = 3000
#: Handshakes of one device, all of which may come at once. Each takes the loop a millisecond or so, and the
#: socket that it replaces stays for up to two seconds.
HANDSHAKES_PER_MINUTE: Final = 300
#: ``telemetry`` of one device, all of which may come at once: more than the hours that are still taken.
TELEMETRY_PER_MINUTE: Final = 240

#: ``message`` comes on a socket and is not decoded yet: ``Overloaded`` binds it only if it is a push.
#: ``push`` and ``request`` come over HTTP; a request writes nothing. ``control`` is a ping, a pong or
#: fragments. ``body`` is a push whose headers were counted before its body came. ``upload`` is a request of
#: an upload or a download. ``telemetry`` is one that was counted as a message or a request already.
Kind = Literal["message", "control", "push", "body", "request", "upload", "handshake", "telemetry"]

#: Why something is refused: the rate of its device, of its tenant, of handshakes or of telemetry, the sockets
#: of its tenant, the queue that makes accepted writes wait, for pushes and for handshakes, or an earlier push
#: of the device that was refused.
Cause = Literal[
    "device_rate",
    "tenant_rate",
    "handshake_rate",
    "telemetry_rate",
    "tenant_connections",
    "queue",
    "newcomers",
    "behind_refused",
]
_PUSHES: Final = frozenset({"message", "push", "body"})


class Accept(NamedTuple):
    """The device may send."""


class RateLimited(NamedTuple):
    """The device or its tenant sends too much."""

    wait_ms: int
    sentence: str = "too many messages"

    def error(self) -> SyncError:
        """Return the error that the device is told."""
        return SyncError("rate_limited", self.sentence, retry_after_ms=self.wait_ms)


class Overloaded(NamedTuple):
    """More comes than can be stored."""

    wait_ms: int

    def error(self) -> SyncError:
        """Return the error that the device is told."""
        return overloaded(self.wait_ms)


Verdict = Accept | RateLimited | Overloaded
ACCEPT: Final = Accept()


class Limited(Protocol):
    """A device, and what it has left (``engine.cache.device_health.Device``)."""

    bucket: TokenBucket
    handshakes: TokenBucket | None
    telemetry: TokenBucket | None

    @property
    def key(self) -> tuple[int, str]:
        """Its tenant and its id."""


class Load(Protocol):
    """How full the queue of commits is (``engine.commit.committer.Committer``)."""

    def should_shed(self, tenant_id: int) -> bool:
        """Return whether a tenant's pushes have to be refused."""

    def over_target(self, tenant_id: int) -> bool:
        """Return whether a tenant's accepted pushes wait for longer than they should."""

    def retry_after_ms(self) -> int:
        """Return when a refused device may come again."""


class Sockets(Protocol):
    """The open sockets (``handlers.sync.connections.Connections``)."""

    def __contains__(self, key: tuple[int, str]) -> bool:
        """Return whether a device has one."""

    def count_of(self, tenant_id: int) -> int:
        """Count those of a tenant."""


class Admission:
    """Decides for one process.

    Args:
        load: The committer.
        tenant_rates: The rates of tenants.
        sockets: The open sockets.
        messages_per_minute: The rate of a device.
        tenant_connections: Sockets that one tenant may have.
        now_s: The monotonic clock at the start.
        later_ms: Draws when a device of a tenant with too many sockets may come again.
    """

    def __init__(
        self,
        load: Load,
        tenant_rates: TenantRates,
        sockets: Sockets,
        *,
        messages_per_minute: int,
        tenant_connections: int,
        now_s: float,
        later_ms: Callable[[], int] = retry_later_ms,
    ) -> None:
        self._load = load
        self._tenant_rates = tenant_rates
        self._sockets = sockets
        self._per_minute = messages_per_minute
        self._tenant_connections = tenant_connections
        self._later_ms = later_ms
        self._newcomers = TokenBucket(0.0, now_s)
        self._refusals = dict.fromkeys(get_args(Cause), 0)

    def metrics(self) -> Iterator[Metric]:
        """Yield the refusals."""
        text = "Messages and handshakes refused before they were read, by cause"
        yield Value("counter", "tidemark_refusals", text, self._refusals, "cause")

    def count_refusal(self, cause: Cause) -> None:
        """Count a message that was refused: on a socket ``Overloaded`` does not bind every message."""
        self._refusals[cause] += 1

    def admit(self, kind: Kind, tenant_id: int, device: Limited, now_s: float) -> Verdict:
        """Decide, and count what is accepted against the rates.

        Args:
            kind: What the device sends.
            tenant_id: Its tenant.
            device: The device.
            now_s: The monotonic clock.

        Returns:
            ``ACCEPT``, or why not and when to come again.
        """
        if kind == "handshake":
            return self._handshake(tenant_id, device, now_s)
        if kind == "telemetry":
            return self._telemetry(device, now_s)
        if kind != "body":
            bucket = device.bucket
            if wait_ms := bucket.take(self._per_minute, now_s):
                self._refusals["device_rate"] += 1
                return RateLimited(wait_ms)
            if wait_ms := self._tenant_rates.take(tenant_id, bucket, now_s):
                self._refusals["tenant_rate"] += 1
                return RateLimited(wait_ms)
        if kind in _PUSHES and self._load.should_shed(tenant_id):
            if kind != "message":
                self._refusals["queue"] += 1
            return Overloaded(self._load.retry_after_ms())
        return ACCEPT

    def check(self, kind: Kind, tenant_id: int, device: Limited, now_s: float) -> None:
        """Decide as ``admit`` does. Raises SyncError ``rate_limited`` or ``overloaded``."""
        verdict = self.admit(kind, tenant_id, device, now_s)
        if not isinstance(verdict, Accept):
            raise verdict.error()

    def _telemetry(self, device: Limited, now_s: float) -> Verdict:
        bucket = device.telemetry
        if bucket is None:
            bucket = device.telemetry = TokenBucket(float(TELEMETRY_PER_MINUTE), now_s)
        if wait_ms := bucket.take(TELEMETRY_PER_MINUTE, now_s):
            self._refusals["telemetry_rate"] += 1
            return RateLimited(wait_ms, "too many telemetry messages")
        return ACCEPT

    def _handshake(self, tenant_id: int, device: Limited, now_s: float) -> Verdict:
        handshakes = device.handshakes
        if handshakes is None:
            handshakes = device.handshakes = TokenBucket(float(HANDSHAKES_PER_MINUTE), now_s)
        if wait_ms := handshakes.take(HANDSHAKES_PER_MINUTE, now_s):
            self._refusals["handshake_rate"] += 1
            return RateLimited(wait_ms, "too many handshakes")
        comes_back = device.key in self._sockets
        if not comes_back and self._sockets.count_of(tenant_id) >= self._tenant_connections:
            self._refusals["tenant_connections"] += 1
            return RateLimited(self._later_ms(), "too many connections of this tenant")
        # A few come back while those that are here have to wait.
        most = NEWCOMERS_PER_MINUTE / 60
        if self._load.over_target(tenant_id) and self._newcomers.take(NEWCOMERS_PER_MINUTE, now_s, most=most):
            self._refusals["newcomers"] += 1
            return Overloaded(self._load.retry_after_ms())
        return ACCEPT
