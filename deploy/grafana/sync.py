"""The dashboard *sync*: how well devices are served, and where the time goes."""

from __future__ import annotations

from typing import Final

from deploy.grafana.panels import (
    Dashboard,
    Panel,
    Query,
    Row,
    highest,
    mean,
    percentile,
    percentiles,
    rate,
    total,
)

_SUCCEEDED: Final = rate("tidemark_syncs_total", where='outcome="succeeded"')

SYNC: Final = Dashboard(
    "sync",
    "Tidemark: sync",
    "How well devices are served, and where the time of a sync goes.",
    (
        Row(
            "Devices",
            (
                Panel(
                    "Success",
                    "percentunit",
                    "Syncs that were answered with results, of all that came. Below 95 % is critical.",
                    (Query(f"{_SUCCEEDED} / {rate('tidemark_syncs_total')}", "succeeded"),),
                    is_number=True,
                ),
                Panel(
                    "Syncs now",
                    "reqps",
                    "Syncs that were answered with results.",
                    (Query(_SUCCEEDED, "succeeded"),),
                    is_number=True,
                ),
                Panel(
                    "95 % of syncs within",
                    "s",
                    "From the arrival of a sync to its answer. Above 500 ms is an incident of level P2.",
                    (Query(percentile(0.95, "tidemark_sync_duration_seconds"), "p95"),),
                    is_number=True,
                ),
                Panel(
                    "Devices connected",
                    "short",
                    "WebSockets that are open.",
                    (Query(total("tidemark_connections"), "connections"),),
                    is_number=True,
                ),
                Panel(
                    "Syncs by outcome",
                    "reqps",
                    "failed: by a fault of the device or its message. refused: by the service.",
                    (Query(rate("tidemark_syncs_total", "outcome"), "{{outcome}}"),),
                ),
                Panel(
                    "Duration of a sync",
                    "s",
                    "From the arrival of a sync to its answer.",
                    percentiles("tidemark_sync_duration_seconds"),
                ),
                Panel(
                    "Items by status",
                    "ops",
                    "Items of answered syncs. Rejected ones are kept in the quarantine.",
                    (Query(rate("tidemark_items_total", "status"), "{{status}}"),),
                ),
                Panel(
                    "Errors by code",
                    "ops",
                    "Errors that devices were told. unavailable, internal and overloaded are the service's.",
                    (
                        Query(
                            f"{rate('tidemark_errors_total', 'code')} > 0 or {rate('tidemark_errors_total')}",
                            "{{code}}",
                        ),
                    ),
                ),
                Panel(
                    "Refusals by cause",
                    "ops",
                    "What was refused before it was read, or for want of room.",
                    (
                        Query(rate("tidemark_refusals_total", "cause"), "{{cause}}"),
                        Query(rate("tidemark_queue_full_total"), "queue full"),
                        Query(rate("tidemark_reads_refused_total"), "reads"),
                        Query(
                            rate("tidemark_requests_refused_total", "bound"), "open requests of a {{bound}}"
                        ),
                        Query(rate("tidemark_partial_refused_total"), "incomplete messages"),
                        Query(rate("tidemark_messages_without_room_total"), "tenant or database full"),
                    ),
                ),
                Panel(
                    "Handshakes",
                    "ops",
                    "Connections that were opened, and those that were refused, by the error's code.",
                    (
                        Query(rate("tidemark_connections_opened_total"), "opened"),
                        Query(
                            f"{rate('tidemark_handshakes_refused_total', 'code')} > 0"
                            f" or {rate('tidemark_handshakes_refused_total')}",
                            "refused {{code}}",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Commit",
            (
                Panel(
                    "Batches",
                    "ops",
                    "Transactions, and messages that they stored.",
                    (
                        Query(rate("tidemark_batch_size_messages_count"), "batches"),
                        Query(rate("tidemark_batch_size_messages_sum"), "messages"),
                    ),
                ),
                Panel(
                    "Messages of a batch",
                    "short",
                    "Many messages in a batch are many commits saved.",
                    (
                        Query(mean("tidemark_batch_size_messages"), "mean"),
                        Query(percentile(0.95, "tidemark_batch_size_messages"), "p95"),
                    ),
                ),
                Panel(
                    "Duration of a batch",
                    "s",
                    "From leaving the queue to the answers. The commit is the part in which the disk writes.",
                    (
                        Query(percentile(0.95, "tidemark_batch_duration_seconds"), "batch p95"),
                        Query(percentile(0.95, "tidemark_commit_duration_seconds"), "commit p95"),
                        Query(mean("tidemark_commit_duration_seconds"), "commit mean"),
                    ),
                ),
                Panel(
                    "Messages in the queue",
                    "short",
                    "Accepted messages that wait to be stored.",
                    (Query(total("tidemark_queued_messages"), "messages"),),
                ),
                Panel(
                    "Age of the queue",
                    "s",
                    "How long the oldest of them has waited, at the process where it is longest.",
                    (Query(highest("tidemark_queue_age_seconds"), "oldest"),),
                ),
                Panel(
                    "Use of the queue",
                    "percentunit",
                    "The part of commit.queue_messages and commit.queue_bytes that is in use.",
                    (Query(highest("tidemark_queue_used_ratio", "bound"), "{{bound}}"),),
                ),
                Panel(
                    "Troubles of commits",
                    "ops",
                    "Batches that ran again, unknown outcomes, and messages that were not stored.",
                    (
                        Query(rate("tidemark_batch_retries_total"), "tried again"),
                        Query(rate("tidemark_commits_unknown_total"), "outcome unknown"),
                        Query(rate("tidemark_messages_failed_total"), "not stored"),
                        Query(rate("tidemark_messages_poisoned_total"), "refused by PostgreSQL"),
                    ),
                ),
            ),
        ),
        Row(
            "Delivery",
            (
                Panel(
                    "Time to subscribers",
                    "s",
                    "From a commit to the handing of its pages to all subscriptions of its tenant.",
                    percentiles("tidemark_delivery_duration_seconds"),
                ),
                Panel(
                    "Pages",
                    "ops",
                    "Pages that were pulled, sent live from memory, and read again for slow subscriptions.",
                    (
                        Query(rate("tidemark_pulls_total"), "pulled"),
                        Query(rate("tidemark_live_pages_total"), "live"),
                        Query(rate("tidemark_stored_pages_total"), "behind"),
                    ),
                ),
                Panel(
                    "Subscriptions",
                    "short",
                    "Subscriptions that are open.",
                    (Query(total("tidemark_subscriptions"), "subscriptions"),),
                ),
                Panel(
                    "Slow readers",
                    "ops",
                    "Pages that found no room in a connection's outbox, and connections cut for not reading.",
                    (
                        Query(rate("tidemark_pages_blocked_total"), "pages blocked"),
                        Query(rate("tidemark_slow_readers_cut_total"), "connections cut"),
                    ),
                ),
            ),
        ),
        Row(
            "Memory in place of the database",
            (
                Panel(
                    "Hit rate",
                    "percentunit",
                    "Reads of policies and devices that were answered from memory.",
                    tuple(
                        Query(
                            f"{rate(f'tidemark_{what}_hits_total')} / ({rate(f'tidemark_{what}_hits_total')}"
                            f" + {rate(f'tidemark_{what}_misses_total')})",
                            legend,
                        )
                        for what, legend in (("policy", "policies"), ("device", "devices"))
                    ),
                ),
                Panel(
                    "Latency",
                    "s",
                    "Reads of policies by batches and handshakes, and of devices that connect, found or not.",
                    tuple(
                        Query(query, f"{legend} {kind}")
                        for what, legend in (("policy", "policies"), ("device", "devices"))
                        for query, kind in (
                            (mean(f"tidemark_{what}_read_duration_seconds"), "mean"),
                            (percentile(0.95, f"tidemark_{what}_read_duration_seconds"), "p95"),
                        )
                    ),
                ),
                Panel(
                    "Remembered",
                    "short",
                    "Tenants and devices in memory, over all processes.",
                    (
                        Query(total("tidemark_tenants_remembered"), "tenants"),
                        Query(total("tidemark_devices_remembered"), "devices"),
                    ),
                ),
            ),
        ),
    ),
)
