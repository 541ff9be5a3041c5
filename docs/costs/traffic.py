"""What connections and messages take."""

from __future__ import annotations

from typing import Final

from docs.costs.cost import Cost, Fixed, size
from engine.commit.admission import HANDSHAKES_PER_MINUTE, NEWCOMERS_PER_MINUTE, TELEMETRY_PER_MINUTE
from engine.feed.cursor import MAX_DOMAINS
from engine.model import telemetry
from engine.plan.context import MAX_FIELDS
from engine.wire.close_codes import CloseCode
from engine.wire.nesting import MAX_DEPTH
from engine.wire.values import MAX_ID_CHARS
from handlers.http.tokens import MAX_TOKEN_CHARS
from handlers.operate.turns import MOST_REQUESTS
from handlers.sync.connection import MAX_IN_FLIGHT, MAX_MALFORMED, MAX_RATE_IGNORED
from handlers.sync.frames import FRAGMENTS
from handlers.sync.reads import MAX_SUBSCRIPTIONS

#: By the heading of their section.
TRAFFIC: Final[dict[str, tuple[Cost, ...]]] = {
    "Connections": (
        Cost(
            "connections without a valid token",
            "address",
            ("server.address_connections",),
            ("overloaded",),
            "tidemark_unauthenticated_refused_total",
        ),
        Cost(
            "half-open connections: time until the headers have come",
            "connection",
            ("server.head_s",),
            ("unavailable", "cut off"),
            "tidemark_heads_late_total",
        ),
        Cost(
            "handshakes",
            "device",
            (Fixed(HANDSHAKES_PER_MINUTE, "a minute"),),
            ("rate_limited",),
            "tidemark_refusals_total{cause=handshake_rate}",
        ),
        Cost(
            "handshakes while accepted writes wait",
            "worker",
            (Fixed(NEWCOMERS_PER_MINUTE, "a minute"),),
            ("overloaded",),
            "tidemark_refusals_total{cause=newcomers}",
        ),
        Cost(
            "WebSockets",
            "device",
            (Fixed(2, "one of them without a frame"),),
            (CloseCode.REPLACED, CloseCode.IDLE),
            "tidemark_closes_total{code=4409}",
        ),
        Cost(
            "WebSockets",
            "tenant",
            ("limits.tenant_connections",),
            ("rate_limited",),
            "tidemark_refusals_total{cause=tenant_connections}",
        ),
        Cost(
            "time of a silent WebSocket",
            "connection",
            ("server.idle_s",),
            (CloseCode.IDLE,),
            "tidemark_closes_total{code=4408}",
        ),
        Cost(
            "requests over HTTP that are open, and idle connections over HTTP",
            "device",
            ("limits.open_requests",),
            ("rate_limited", "cut off"),
            "tidemark_requests_refused_total{bound=device}",
        ),
        Cost(
            "requests over HTTP that are open",
            "tenant",
            ("limits.tenant_open_requests",),
            ("rate_limited",),
            "tidemark_requests_refused_total{bound=tenant}",
        ),
        Cost(
            "time of a body",
            "connection",
            ("server.body_s",),
            ("unavailable",),
            "tidemark_errors_total{code=unavailable}",
        ),
        Cost(
            "time without reading an answer over HTTP",
            "connection",
            ("server.write_patience_s",),
            ("cut off",),
            "tidemark_answers_unread_total",
        ),
        Cost(
            "time without reading a WebSocket",
            "connection",
            ("server.write_patience_s",),
            ("cut off",),
            "tidemark_slow_readers_cut_total",
        ),
        Cost(
            "requests of one operator's or viewer's token under way",
            "token",
            (Fixed(MOST_REQUESTS, "requests"),),
            ("rate_limited",),
            "tidemark_errors_total{code=rate_limited}",
        ),
    ),
    "Messages": (
        Cost(
            "messages, pings and pongs",
            "device",
            ("limits.messages_per_minute",),
            ("rate_limited",),
            "tidemark_refusals_total{cause=device_rate}",
        ),
        Cost(
            "messages, pings and pongs",
            "tenant",
            ("limits.tenant_messages_per_minute",),
            ("rate_limited",),
            "tidemark_refusals_total{cause=tenant_rate}",
        ),
        Cost(
            "messages in spite of `rate_limited`",
            "connection",
            (Fixed(MAX_RATE_IGNORED, "in a row"),),
            (CloseCode.RATE_IGNORED,),
            "tidemark_closes_total{code=4429}",
        ),
        Cost(
            "malformed messages",
            "connection",
            (Fixed(MAX_MALFORMED, "in a row"),),
            ("malformed", CloseCode.BAD_FRAMES),
            "tidemark_closes_total{code=4400}",
        ),
        Cost(
            "frames that end no message",
            "device",
            (Fixed(FRAGMENTS, "count as a message"),),
            ("rate_limited",),
            "tidemark_refusals_total{cause=device_rate}",
        ),
        Cost(
            "telemetry",
            "device",
            (Fixed(TELEMETRY_PER_MINUTE, "a minute"),),
            ("rate_limited",),
            "tidemark_refusals_total{cause=telemetry_rate}",
        ),
        Cost(
            "pushes and resolutions that are not answered",
            "connection",
            (Fixed(MAX_IN_FLIGHT, "messages"),),
            ("waits",),
            "tidemark_queued_messages",
        ),
        Cost(
            "subscriptions",
            "connection",
            (Fixed(MAX_SUBSCRIPTIONS, "subscriptions"),),
            ("too_large",),
            "tidemark_subscriptions",
        ),
        Cost(
            "messages that wait for the commit",
            "worker",
            ("commit.queue_messages", "commit.queue_bytes"),
            ("overloaded",),
            "tidemark_queue_full_total",
        ),
    ),
    "Size of a message": (
        Cost(
            "headers of a request",
            "connection",
            ("server.head_bytes",),
            ("too_large",),
            "tidemark_heads_refused_total",
        ),
        Cost(
            "a token",
            "connection",
            (Fixed(MAX_TOKEN_CHARS, "characters"),),
            ("unauthenticated",),
            "tidemark_security_events_total{event=token_refused}",
        ),
        Cost(
            "a message on a WebSocket, inflated",
            "device",
            ("limits.frame_bytes",),
            (CloseCode.TOO_LARGE,),
            "tidemark_closes_total{code=1009}",
        ),
        Cost(
            "a body over HTTP, inflated",
            "device",
            ("limits.frame_bytes",),
            ("too_large",),
            "tidemark_errors_total{code=too_large}",
        ),
        Cost(
            "nesting",
            "device",
            (Fixed(MAX_DEPTH, "levels"),),
            ("malformed",),
            "tidemark_errors_total{code=malformed}",
        ),
        Cost(
            "items of a sync",
            "device",
            ("limits.items",),
            ("too_large",),
            "tidemark_errors_total{code=too_large}",
        ),
        Cost(
            "a record, an event",
            "device",
            ("limits.record_bytes", Fixed(MAX_FIELDS, "fields")),
            ("too_large", "invalid_item"),
            "tidemark_items_total{status=rejected}",
        ),
        Cost(
            "ids",
            "device",
            (Fixed(MAX_ID_CHARS, "characters"),),
            ("invalid_item", "invalid_message"),
            "tidemark_items_total{status=rejected}",
        ),
        Cost(
            "domains of a pull or subscription",
            "device",
            (Fixed(MAX_DOMAINS, "names"),),
            ("invalid_message",),
            "tidemark_errors_total{code=invalid_message}",
        ),
        Cost(
            "a message of telemetry",
            "device",
            (
                size(telemetry.MAX_BYTES),
                Fixed(telemetry.MAX_COUNTERS, "counters"),
                Fixed(telemetry.MAX_HISTOGRAMS, "histograms"),
            ),
            ("too_large",),
            "tidemark_errors_total{code=too_large}",
        ),
    ),
}
