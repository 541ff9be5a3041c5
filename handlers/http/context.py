"""What every handler works with: the engine's parts and the bounds of the edge."""

from __future__ import annotations

import msgspec

from engine.cache.devices import Devices
from engine.cache.revocations import Revocations
from engine.cache.tenants import PolicyBook
from engine.cluster.bus import Bus
from engine.commit.committer import Committer
from engine.commit.validation import MessageValidator
from engine.feed.feed import Feed
from engine.model.domains import Domains
from engine.operate.conflicts import ConflictStore
from engine.plan.capacity import CapacityState
from engine.runtime.loop_share import LoopShares
from engine.runtime.loop_turns import LoopTurns
from engine.runtime.open_requests import OpenRequests
from engine.runtime.partial_messages import PartialMessages
from engine.runtime.ports import Clock
from engine.runtime.rate_limit import TenantRates
from engine.runtime.read_limiter import ReadTurns
from engine.uploads.cleanup_job import CleanupCounters
from engine.uploads.service import UploadCounters
from engine.wire.messages import Limits
from handlers.http.client_address import Networks, Refusals
from handlers.http.counters import Traffic
from handlers.http.loop_watch import LoopWatch
from handlers.http.stranger_limits import Doors
from handlers.http.tokens import Verifier


class EdgeLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a connection.

    ``outbox_bytes`` may wait for a slow reader, who is cut off when it takes nothing for
    ``write_patience_s``. A message's body over HTTP has to come within ``body_s``.
    """

    frame_bytes: int
    items: int
    record_bytes: int
    messages_per_minute: int
    outbox_bytes: int
    heartbeat_s: int
    compress: bool
    write_patience_s: float = 10.0
    body_s: float = 120.0
    tenant_connections: int = 50_000

    def welcome(self) -> Limits:
        """Say those that a device is told."""
        return Limits(self.frame_bytes, self.items, self.record_bytes, self.messages_per_minute)


class Core(msgspec.Struct, frozen=True):
    """The engine as the handlers see it."""

    domains: Domains
    intake: MessageValidator
    committer: Committer
    feed: Feed
    policies: PolicyBook
    devices: Devices
    revocations: Revocations
    conflicts: ConflictStore
    clock: Clock
    verifier: Verifier
    limits: EdgeLimits
    traffic: Traffic
    bus: Bus
    refusals: Refusals
    trusted_proxies: Networks
    tenant_rates: TenantRates
    read_turns: ReadTurns
    uploads: UploadCounters
    cleanup_job: CleanupCounters
    shares: LoopShares
    turns: LoopTurns
    watch: LoopWatch
    room: CapacityState
    doors: Doors
    open_requests: OpenRequests
    partial_messages: PartialMessages

    def policy_names(self, tenant_id: int) -> dict[str, str]:
        """Map each domain to its policy, as a device is told."""
        return {name: policy.policy for name, policy in self.policies.of(tenant_id).items()}
