"""The bus between processes, as the engine uses it. The docstrings state the duties of an implementation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec

from engine.model.rows import Record
from engine.runtime.metrics import Metric, counter, gauge


class BusState(msgspec.Struct):
    """The state of the bus. Counts are of messages since the process started.

    - ``connecting``: the first attempt to join the bus has neither succeeded nor failed.
    - ``up``: the process's own messages come back to it.
    - ``round_trip_s``: how long the last message took to come back.
    - ``malformed``: received bytes that are not a message.
    - ``rejected``: messages from no process of this database, or with a wrong time.
    - ``losses``: how often the bus went away.
    """

    connecting: bool = True
    up: bool = False
    round_trip_s: float = 0.0
    published: int = 0
    received: int = 0
    malformed: int = 0
    rejected: int = 0
    losses: int = 0

    def metrics(self) -> Iterator[Metric]:
        """Yield the state and the counts."""
        text = "How long the last message took to Redis and back"
        yield from (
            gauge("tidemark_bus_up", "Whether Redis carries messages between processes", self.up),
            gauge("tidemark_bus_round_trip_seconds", text, self.round_trip_s),
            counter("tidemark_bus_published", "Messages told to other processes", self.published),
            counter("tidemark_bus_received", "Messages received, also those of this process", self.received),
            counter("tidemark_bus_malformed", "Received bytes that are not a message", self.malformed),
            counter("tidemark_bus_rejected", "Messages with a wrong signature or time", self.rejected),
            counter("tidemark_bus_losses", "How often Redis went away", self.losses),
        )


class BusListener(Protocol):
    """Gets what other processes tell. Its methods are called on the event loop, and never wait."""

    def generation_moved(self) -> None:
        """Tenants, policies or revocations may have changed."""

    def feed_advanced(self, tenant_id: int, seq: int) -> None:
        """A tenant's feed has reached ``seq``, if the sender is right."""

    def device_connected(self, tenant_id: int, device_id: str, session_id: str, at_us: int) -> None:
        """A device uses a connection to another process.

        That one answered the handshake at ``at_us`` by the clock of its host.
        """

    def upload_requested(self, tenant_id: int, upload_id: str, lock_owner: str) -> None:
        """Another process waits for an upload whose lock ``lock_owner`` has, maybe a request of this one."""

    def resync(self) -> None:
        """Messages may have been missed: the bus went away or came back. Look everything up."""


class Bus(Protocol):
    """How processes on one database tell each other what they did.

    No promise depends on it: messages may be lost, come twice or come late, and a listener looks up what it
    is told. No method but ``drain`` waits. While the bus is away, messages are dropped; when it is back, the
    other processes are told that some are missing.
    """

    state: BusState

    def committed(self, changes: list[tuple[Record, str]]) -> None:
        """Tell that changes (with the sessions that pushed them) are in the feeds of their tenants."""

    def device_connected(self, tenant_id: int, device_id: str, session_id: str, at_us: int) -> None:
        """Tell that a device uses a connection to this process, which answered its handshake at ``at_us``."""

    def upload_requested(self, tenant_id: int, upload_id: str, lock_owner: str) -> None:
        """Ask the request that has an upload's lock to release it."""

    async def run(self, listener: BusListener) -> None:
        """Stay on the bus until cancelled, and join it again when it was lost.

        The listener does not get the process's own messages.
        """

    async def drain(self) -> None:
        """Wait until everything was told, unless the bus is away."""
