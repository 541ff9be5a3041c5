"""How many bytes of messages wait on the WebSockets of a process, for their rest or for their turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from engine.runtime.metrics import Metric, counter, gauge

#: A message is never refused before so much of it is there. Those of devices are seldom larger.
SMALL_BYTES: Final = 65_536


class PartialMessages:
    """Counts them by tenant. Of one socket, ``limits.frame_bytes`` is the bound, and a device has one socket.

    A large message counts until it is handled (``engine.runtime.loop_scheduler``). Without that, messages of
    many sockets would wait there without a bound.

    Args:
        tenant_bytes: Of all sockets of a tenant.
        all_bytes: Of all sockets. Past it no tenant is refused that has less than its equal part.
    """

    def __init__(self, tenant_bytes: int, all_bytes: int) -> None:
        self._tenant_bytes: Final = tenant_bytes
        self._all_bytes: Final = all_bytes
        self._of_tenants: Counter[int] = Counter()
        self.waiting_bytes = 0
        self.refused = 0

    def metrics(self) -> Iterator[Metric]:
        """Yield what waits, and what was refused."""
        yield gauge("tidemark_partial_bytes", "Bytes of incomplete or waiting messages", self.waiting_bytes)
        yield counter("tidemark_partial_refused", "Sockets closed for too many of these bytes", self.refused)

    def change(self, tenant_id: int, before_bytes: int, after_bytes: int) -> bool:
        """Count what waits on one socket.

        Returns:
            False if it grew and its tenant has too much: the socket is to be closed, and counted down to 0.
        """
        more_bytes = after_bytes - before_bytes
        self.waiting_bytes += more_bytes
        self._of_tenants[tenant_id] = of_tenant = self._of_tenants[tenant_id] + more_bytes
        if not of_tenant:
            del self._of_tenants[tenant_id]
        if more_bytes <= 0 or after_bytes <= SMALL_BYTES:
            return True
        over = of_tenant > self._tenant_bytes or (
            self.waiting_bytes > self._all_bytes and of_tenant * len(self._of_tenants) >= self.waiting_bytes
        )
        self.refused += over
        return not over
