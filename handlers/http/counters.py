"""Plain counters of the traffic of this process."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

import msgspec

from engine.runtime.metrics import DURATION_BOUNDS_MS, Histogram, Metric, Value, counter
from engine.wire.close_codes import CloseCode
from engine.wire.errors import ERRORS, SERVICE_ERRORS

#: Each error of a whole message has its row from the start, so that the first one is an increase.
_NO_ERRORS: Final = {kind.code: 0 for kind in ERRORS.values() if kind.http is not None}


class Traffic(msgspec.Struct):
    """Counts since the process started. ``sync_durations`` counts by bucket; the last bucket has no bound."""

    connections: int = 0
    refused_handshakes: dict[str, int] = msgspec.field(default_factory=lambda: dict(_NO_ERRORS))
    messages_in: int = 0
    bytes_in: int = 0
    syncs_failed: int = 0
    syncs_refused: dict[str, int] = msgspec.field(
        default_factory=lambda: dict.fromkeys(sorted(SERVICE_ERRORS), 0)
    )
    sync_duration_sum_ms: float = 0.0
    sync_durations: list[int] = msgspec.field(default_factory=lambda: [0] * (len(DURATION_BOUNDS_MS) + 1))
    errors: dict[str, int] = msgspec.field(default_factory=lambda: dict(_NO_ERRORS))
    closes: dict[int, int] = msgspec.field(default_factory=lambda: dict.fromkeys(CloseCode, 0))
    slow_readers_cut: int = 0

    def metrics(self) -> Iterator[Metric]:
        """Yield the counts."""
        yield from (
            counter("tidemark_connections_opened", "WebSockets opened", self.connections),
            counter("tidemark_messages_received", "Messages received", self.messages_in),
            counter("tidemark_received_bytes", "Bytes of WebSocket messages received", self.bytes_in),
            counter("tidemark_slow_readers_cut", "Connections cut for not reading", self.slow_readers_cut),
            Value(
                "counter",
                "tidemark_handshakes_refused",
                "Handshakes refused, by the code of the error",
                self.refused_handshakes,
                "code",
            ),
            Value("counter", "tidemark_errors", "Errors sent, by code", self.errors, "code"),
        )
        closes = {str(int(code)): count for code, count in self.closes.items()}
        yield Value("counter", "tidemark_closes", "Connections closed, by code", closes, "code")
        syncs = {
            "succeeded": sum(self.sync_durations),
            "failed": self.syncs_failed,
            "refused": sum(self.syncs_refused.values()),
        }
        text = "Syncs, and handshakes that the service refused, by outcome"
        yield Value("counter", "tidemark_syncs", text, syncs, "outcome")
        text = "The refused ones of these, by the code of the error"
        yield Value("counter", "tidemark_syncs_refused", text, self.syncs_refused, "code")
        yield Histogram(
            "tidemark_sync_duration_seconds",
            "From a sync's arrival to its answer",
            self.sync_durations,
            self.sync_duration_sum_ms / 1000,
        )

    def sync_answered(self, duration_us: int) -> None:
        """Count a sync that was answered with results."""
        duration_ms = duration_us / 1000
        self.sync_duration_sum_ms += duration_ms
        self.sync_durations[bisect_left(DURATION_BOUNDS_MS, duration_ms)] += 1

    def error(self, code: str) -> None:
        """Count an error that was sent."""
        self.errors[code] = self.errors.get(code, 0) + 1

    def handshake_refused(self, code: str) -> None:
        """Count a handshake that was refused with an error."""
        self.refused_handshakes[code] = self.refused_handshakes.get(code, 0) + 1

    def closed(self, code: int) -> None:
        """Count a connection that this side closed."""
        self.closes[code] = self.closes.get(code, 0) + 1
