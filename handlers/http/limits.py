"""The bounds of a device's connection and of its messages, as the settings give them."""

from __future__ import annotations

import msgspec

from engine.wire.messages import Limits


class EdgeLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a connection.

    Attributes:
        frame_bytes: A message, and the body of a message over HTTP.
        items: Items of one push.
        record_bytes: The data of one record.
        messages_per_minute: The rate of a device.
        outbox_bytes: What may wait for a slow reader.
        heartbeat_s: How often devices are asked to send a heartbeat.
        compress: Whether permessage-deflate is offered.
        write_patience_s: A reader that takes nothing for this long is cut off.
        body_s: The body of a message over HTTP has to come within this time.
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

    def welcome(self) -> Limits:
        """Return the limits that a device is told."""
        return Limits(self.frame_bytes, self.items, self.record_bytes, self.messages_per_minute)
