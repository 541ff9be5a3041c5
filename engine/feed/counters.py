"""What a feed counts."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from engine.runtime.metrics import Distribution, Metric, counter


class FeedCounters(msgspec.Struct):
    """Pages since the start.

    Attributes:
        pulls: Pages that devices pulled.
        live_pages: Pages that subscriptions took from memory.
        stored_pages: Pages that subscriptions took which had fallen behind, read from the database.
        blocked: Pages that were not taken because too much of a connection was unsent.
        delays: From the moment when a change was known here until all subscriptions of its tenant were handed
            their pages.
    """

    pulls: int = 0
    live_pages: int = 0
    stored_pages: int = 0
    blocked: int = 0
    delays: Distribution = msgspec.field(default_factory=Distribution)

    def metrics(self) -> Iterator[Metric]:
        """Yield the counts."""
        yield from (
            counter("tidemark_pulls", "Pages that devices pulled", self.pulls),
            counter("tidemark_live_pages", "Pages for subscriptions, from memory", self.live_pages),
            counter("tidemark_stored_pages", "Pages for subscriptions that fell behind", self.stored_pages),
            counter("tidemark_pages_blocked", "Pages that slow readers had no room for", self.blocked),
        )
        text = "From a change's commit to the handing of its pages to all subscriptions of its tenant"
        yield self.delays.metric("tidemark_delivery_duration_seconds", text)
