"""What is taken of processor, database, memory and disk."""

from __future__ import annotations

from typing import Final

from docs.costs.cost import Cost, Fixed, size
from engine.cache.telemetry import MOST_WAITING
from engine.cache.tenants import UNKNOWN_NAMES
from engine.commit.planning import MESSAGE_S
from engine.model import telemetry
from engine.model.commit_counts import HOUR_US
from engine.operate.event_tally import RATES, TallyLimits
from engine.operate.figures.aggregation import DEVICE_HOURS_KEPT_US
from engine.plan.held_changes import MAX_CHANGES
from engine.plan.push import MESSAGE_TOUCHES_BYTES
from engine.runtime.loop_share import DEVICE_PART, TENANT_PART
from engine.runtime.read_limiter import MAX_WAITING
from engine.runtime.unauthenticated_scheduler import REMEMBERED_ADDRESSES
from engine.uploads import metadata
from engine.uploads import service as uploads
from engine.uploads.cleanup import ENDED_ROWS_DAYS
from engine.uploads.locks import MOST_OF_A_DEVICE
from engine.wire.close_codes import CloseCode
from handlers.http.tokens import REMEMBERED_TOKENS
from handlers.http.unauthenticated import UnauthenticatedLimits
from handlers.operate.logging import LINES_PER_MINUTE
from handlers.sync.connection import MAX_READS
from handlers.sync.outbox import MAX_OUTBOXES
from storage.stores.feed import PIECE_ROWS

_HEADS: Final = UnauthenticatedLimits.__struct_defaults__[-2:]
#: Of addresses, of others, and of rates.
_ROWS: Final = sum(one.rows + one.kinds for one in (TallyLimits(), TallyLimits(), RATES))

#: By the heading of their section.
RESOURCES: Final[dict[str, tuple[Cost, ...]]] = {
    "Processor and database": (
        Cost(
            "time of the event loop while others want it",
            "device",
            (Fixed(DEVICE_PART * 100, "%"),),
            ("waits",),
            "tidemark_loop_charged_seconds_total",
        ),
        Cost(
            "time of the event loop while others want it",
            "tenant",
            (Fixed(TENANT_PART * 100, "%"),),
            ("waits",),
            "tidemark_loop_charged_seconds_total",
        ),
        Cost(
            "time of the event loop without a valid token",
            "address",
            (Fixed(DEVICE_PART * 100, "%"),),
            ("waits",),
            "tidemark_unauthenticated_seconds_total",
        ),
        Cost(
            "planning of one message",
            "device",
            (Fixed(MESSAGE_S, "s"), size(MESSAGE_TOUCHES_BYTES)),
            ("too_large",),
            "tidemark_errors_total{code=too_large}",
        ),
        Cost(
            "reads that wait",
            "device",
            (Fixed(MAX_WAITING, "reads"),),
            ("overloaded",),
            "tidemark_reads_refused_total",
        ),
        Cost(
            "reads of one WebSocket",
            "connection",
            (Fixed(MAX_READS, "reads"),),
            ("waits",),
            "tidemark_reads_waiting",
        ),
        Cost(
            "connections to the database that read",
            "worker",
            ("postgres.read_connections",),
            ("waits",),
            "tidemark_reads_waiting",
        ),
        Cost(
            "rows that one statement of a pull reads",
            "device",
            (Fixed(PIECE_ROWS, "rows"),),
            ("waits",),
            "tidemark_pulls_total",
        ),
        Cost(
            "requests on uploads under way",
            "device",
            (Fixed(MOST_OF_A_DEVICE, "requests"),),
            ("rate_limited",),
            "tidemark_errors_total{code=rate_limited}",
        ),
        Cost(
            "threads that write files",
            "worker",
            ("uploads.write_threads",),
            ("waits",),
            "tidemark_upload_chunks_total",
        ),
    ),
    "Memory": (
        Cost(
            "incomplete headers",
            "worker",
            (size(_HEADS[0]),),
            ("overloaded",),
            "tidemark_heads_refused_total",
        ),
        Cost(
            "incomplete headers",
            "address",
            (size(_HEADS[1]),),
            ("overloaded",),
            "tidemark_heads_refused_total",
        ),
        Cost(
            "bodies of open requests",
            "device",
            ("limits.waiting_bytes",),
            ("rate_limited",),
            "tidemark_requests_refused_total{bound=device}",
        ),
        Cost(
            "bodies of open requests",
            "tenant",
            ("limits.tenant_waiting_bytes",),
            ("rate_limited",),
            "tidemark_requests_refused_total{bound=tenant}",
        ),
        Cost(
            "incomplete messages of WebSockets",
            "tenant",
            ("limits.tenant_waiting_bytes",),
            ("overloaded", CloseCode.UNAVAILABLE),
            "tidemark_partial_refused_total",
        ),
        Cost(
            "pages that a slow reader has not taken",
            "connection",
            ("server.outbox_bytes",),
            ("waits",),
            "tidemark_pages_blocked_total",
        ),
        Cost(
            "answers that a slow reader has not taken",
            "connection",
            ("server.outbox_bytes", Fixed(MAX_OUTBOXES, "times that")),
            ("cut off",),
            "tidemark_slow_readers_cut_total",
        ),
        Cost(
            "a page, an answer",
            "device",
            ("feed.page_bytes", "limits.answer_data_bytes"),
            ("left out",),
            "tidemark_pulls_total",
        ),
        Cost(
            "the tail of a tenant with subscribers",
            "tenant",
            ("feed.tail_changes", "feed.tail_bytes"),
            ("forgotten",),
            "tidemark_stored_pages_total",
        ),
        Cost(
            "health and rate of devices",
            "worker",
            ("devices.remembered", "devices.ttl_s"),
            ("forgotten",),
            "tidemark_devices_remembered",
        ),
        Cost(
            "tokens that were verified",
            "worker",
            (Fixed(REMEMBERED_TOKENS, "tokens"),),
            ("forgotten",),
            "tidemark_security_events_total{event=token_refused}",
        ),
        Cost(
            "names of signed tokens that no tenant has",
            "worker",
            (Fixed(UNKNOWN_NAMES, "names"),),
            ("forgotten",),
            "tidemark_security_events_total{event=access_forbidden}",
        ),
        Cost(
            "addresses that are charged without a valid token",
            "worker",
            (Fixed(REMEMBERED_ADDRESSES, "addresses"),),
            ("forgotten",),
            "tidemark_unauthenticated_seconds_total",
        ),
        Cost(
            "telemetry that is not stored yet",
            "worker",
            (Fixed(MOST_WAITING, "messages"),),
            ("overloaded",),
            "tidemark_telemetry_total{outcome=overloaded}",
        ),
    ),
    "Disk": (
        *(
            Cost(
                what,
                "tenant",
                tuple(f"tenant_limits.{kind}_{unit}" for unit in units),
                ("insufficient_storage",),
                f"tidemark_tenant_fullest_ratio{{bound={kind}_rows}}",
            )
            for kind, what, units in (
                ("record", "records, those that are deleted as well", ("rows", "bytes")),
                ("conflict", "conflicts", ("rows", "bytes")),
                ("quarantine", "rejected items", ("rows", "bytes")),
                ("event", "events", ("rows", "bytes")),
                ("answer", "keys with their answers", ("rows", "bytes")),
                ("future_event", "events that are dated ahead", ("rows",)),
                ("device", "devices that were ever seen, or revoked", ("rows",)),
            )
        ),
        Cost(
            "hours in which it synced or was seen",
            "device",
            (Fixed(DEVICE_HOURS_KEPT_US / HOUR_US, "hours"),),
            ("expires",),
            "tidemark_health_flush_rows_total",
        ),
        Cost(
            "changes that one conflict holds",
            "device",
            (Fixed(MAX_CHANGES, "changes"), "limits.record_bytes"),
            ("too_large",),
            "tidemark_items_total{status=rejected}",
        ),
        Cost(
            "time for which keys are kept",
            "tenant",
            ("idempotency.lifetime_h",),
            ("expires",),
            "tidemark_held_rows{kind=answer}",
        ),
        Cost(
            "files, unfinished uploads included",
            "tenant",
            ("uploads.tenant_bytes",),
            ("quota_exceeded",),
            "tidemark_errors_total{code=quota_exceeded}",
        ),
        Cost(
            "a file",
            "device",
            ("uploads.image_bytes", "uploads.document_bytes", "uploads.voice_bytes"),
            ("too_large",),
            "tidemark_errors_total{code=too_large}",
        ),
        Cost(
            "files of one record",
            "tenant",
            ("uploads.files_per_record",),
            ("quota_exceeded",),
            "tidemark_errors_total{code=quota_exceeded}",
        ),
        Cost(
            "unfinished uploads",
            "device",
            ("uploads.open_per_device",),
            ("insufficient_storage",),
            "tidemark_errors_total{code=insufficient_storage}",
        ),
        Cost(
            "time of an unfinished upload",
            "device",
            ("uploads.expire_h", "uploads.idle_s"),
            ("upload_gone", "expires"),
            "tidemark_uploads_expired_total",
        ),
        Cost(
            "uploads begun in 24 hours, and rows of those that ended",
            "device",
            ("uploads.begun_per_device", Fixed(ENDED_ROWS_DAYS, "days")),
            ("rate_limited", "expires"),
            "tidemark_errors_total{code=rate_limited}",
        ),
        Cost(
            "parts of a file",
            "device",
            (Fixed(uploads.MAX_PARTS, "parts"),),
            ("invalid_message",),
            "tidemark_errors_total{code=invalid_message}",
        ),
        Cost(
            "metadata of a file",
            "device",
            (Fixed(metadata.MAX_CHARS, "characters"),),
            ("invalid_message",),
            "tidemark_errors_total{code=invalid_message}",
        ),
        Cost(
            "telemetry of an hour",
            "device",
            (Fixed(telemetry.MAX_PARTS, "messages"),),
            ("too_large",),
            "tidemark_telemetry_total{outcome=parts}",
        ),
        Cost(
            "names of telemetry",
            "device",
            (Fixed(telemetry.MAX_DEVICE_NAMES, "names"),),
            ("too_large",),
            "tidemark_telemetry_total{outcome=names}",
        ),
        Cost(
            "names of telemetry",
            "tenant",
            (Fixed(telemetry.MAX_TENANT_NAMES, "names"),),
            ("too_large",),
            "tidemark_telemetry_total{outcome=names}",
        ),
        Cost(
            "telemetry",
            "tenant",
            ("retention.telemetry_d",),
            ("expires",),
            "tidemark_telemetry_total{outcome=stored}",
        ),
        Cost(
            "room on the disk of the database",
            "worker",
            ("postgres.min_free_bytes", "postgres.max_bytes"),
            ("insufficient_storage",),
            "tidemark_database_full",
        ),
        Cost(
            "rows of the audit log about refusals",
            "worker",
            (Fixed(_ROWS, "a minute, and one for each event"), "retention.audit_d"),
            ("left out",),
            "tidemark_security_events_total{event=token_refused}",
        ),
        Cost(
            "lines of one event in the log",
            "worker",
            (Fixed(LINES_PER_MINUTE, "a minute"),),
            ("left out",),
            "tidemark_log_lines_left_out_total{cause=flood}",
        ),
    ),
}
