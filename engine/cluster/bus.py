"""What the engine needs of a bus between processes. The docstrings state the duty."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec

from engine.model.rows import Record
from engine.runtime.metrics import Metric, counter, gauge


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

    def metrics(self) -> Iterator[Metric]:
        """Yield the state and the counts."""
        text = "How long the last message took to come back"
        yield from (
            gauge("tidemark_bus_up", "Whether Redis carries messages between processes", self.up),
            gauge("tidemark_bus_round_trip_seconds", text, self.round_trip_s),
            counter("tidemark_bus_published", "Messages told to other processes", self.published),
            counter("tidemark_bus_received", "Messages received, one's own as well", self.received),
            counter("tidemark_bus_garbled", "Messages received that were none", self.garbled),
            counter("tidemark_bus_doubted", "Messages not signed rightly, or of another time", self.doubted),
            counter("tidemark_bus_losses", "How often Redis went away", self.losses),
        )


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
