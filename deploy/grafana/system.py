"""The dashboard *system*: processes, PostgreSQL, Redis and disks."""

from __future__ import annotations

from typing import Final

from deploy.grafana.panels import (
    Dashboard,
    Panel,
    Query,
    Row,
    grown,
    highest,
    lowest,
    percentile,
    rate,
    total,
)

_SUCCEEDED_AT: Final = highest("tidemark_job_last_success_timestamp_seconds", "exported_job")
_SYNCS: Final = rate("tidemark_syncs_total", where='outcome="succeeded"')

SYSTEM: Final = Dashboard(
    "system",
    "Tidemark: system",
    "Processes, PostgreSQL, Redis and disks.",
    (
        Row(
            "Processes",
            (
                Panel(
                    "Hosts up",
                    "short",
                    "Hosts that answer Prometheus.",
                    (Query(total("up"), "hosts"),),
                    is_number=True,
                ),
                Panel(
                    "Workers up",
                    "short",
                    "Workers that answer the one that was asked. A single worker has no such metric.",
                    (Query(f"{total('tidemark_worker_up')} or {total('tidemark_build_info')}", "workers"),),
                    is_number=True,
                ),
                Panel(
                    "Versions",
                    "short",
                    "Processes by version. Two versions at once lose work.",
                    (Query(total("tidemark_build_info", "version", "schema"), "{{version}} ({{schema}})"),),
                    is_number=True,
                ),
                Panel(
                    "Started",
                    "dtdurations",
                    "How long the youngest process has run.",
                    (Query(f"time() - {highest('tidemark_start_time_seconds')}", "youngest"),),
                    is_number=True,
                ),
                Panel(
                    "Processors in use",
                    "short",
                    "A worker uses one core at most.",
                    (
                        Query(
                            rate("tidemark_cpu_seconds_total", "instance", "worker"),
                            "{{instance}} {{worker}}",
                        ),
                    ),
                ),
                Panel(
                    "Memory",
                    "bytes",
                    "Resident memory of each process.",
                    (
                        Query(
                            highest("tidemark_resident_memory_bytes", "instance", "worker"),
                            "{{instance}} {{worker}}",
                        ),
                    ),
                ),
                Panel(
                    "Delay of the event loop",
                    "s",
                    "All devices of a worker wait for its loop. Measured 20 times a second.",
                    (
                        Query(percentile(0.99, "tidemark_loop_delay_seconds"), "p99"),
                        Query(highest("tidemark_loop_delay_longest_seconds"), "longest"),
                    ),
                ),
                Panel(
                    "Time of event loops",
                    "percentunit",
                    "What was charged to devices, and what connections without a valid token took.",
                    (
                        Query(rate("tidemark_loop_charged_seconds_total"), "devices"),
                        Query(rate("tidemark_unauthenticated_seconds_total"), "without a valid token"),
                    ),
                ),
                Panel(
                    "Connections",
                    "short",
                    "WebSockets, and connections that have shown no valid token yet.",
                    (
                        Query(total("tidemark_connections"), "WebSockets"),
                        Query(total("tidemark_unauthenticated_connections"), "without a valid token"),
                        Query(total("tidemark_open_files_limit"), "limit of open files"),
                    ),
                ),
                Panel(
                    "Closes by code",
                    "ops",
                    "WebSockets that the server closed. The contract lists the codes.",
                    (
                        Query(
                            f"{rate('tidemark_closes_total', 'code')} > 0 or {rate('tidemark_closes_total')}",
                            "{{code}}",
                        ),
                    ),
                ),
                Panel(
                    "Incomplete messages",
                    "bytes",
                    "Bytes of WebSocket messages that are incomplete or wait for their turn.",
                    (Query(total("tidemark_partial_bytes"), "waiting"),),
                ),
                Panel(
                    "Connections refused early",
                    "ops",
                    "Connections that were ended before they had shown a valid token.",
                    (
                        Query(rate("tidemark_unauthenticated_refused_total"), "too many of an address"),
                        Query(rate("tidemark_heads_late_total"), "headers late"),
                        Query(rate("tidemark_heads_refused_total"), "headers refused"),
                        Query(rate("tidemark_answers_unread_total"), "answer not read"),
                    ),
                ),
            ),
        ),
        Row(
            "PostgreSQL",
            (
                Panel(
                    "Connections in use",
                    "short",
                    "Connections of all processes: in use, open, and the most that they open.",
                    (
                        Query(total("tidemark_database_connections_busy"), "in use"),
                        Query(total("tidemark_database_connections"), "open"),
                        Query(total("tidemark_database_connections_limit"), "limit"),
                    ),
                ),
                Panel(
                    "In use by pool",
                    "short",
                    "commit: batches. reads: pulls and caches. uploads, readiness: their own.",
                    (Query(total("tidemark_database_connections_busy", "pool"), "{{pool}}"),),
                ),
                Panel(
                    "Requests a sync",
                    "short",
                    "Round trips to PostgreSQL, and statements in them, of all work, by answered syncs.",
                    (
                        Query(f"{rate('tidemark_database_round_trips_total')} / {_SYNCS}", "round trips"),
                        Query(f"{rate('tidemark_database_statements_total')} / {_SYNCS}", "statements"),
                    ),
                ),
                Panel(
                    "Round trips",
                    "ops",
                    "Requests to PostgreSQL by pool.",
                    (Query(rate("tidemark_database_round_trips_total", "pool"), "{{pool}}"),),
                ),
                Panel(
                    "Waits for a connection",
                    "s",
                    "Time that work waited for a free connection, in each second.",
                    (Query(rate("tidemark_database_wait_seconds_total", "pool"), "{{pool}}"),),
                ),
                Panel(
                    "Reads that wait",
                    "short",
                    "Reads of devices that wait for their turn.",
                    (Query(total("tidemark_reads_waiting"), "reads"),),
                ),
                Panel(
                    "Connections opened and failed",
                    "ops",
                    "New connections, and attempts at which no host let a process in.",
                    (
                        Query(rate("tidemark_database_connections_opened_total"), "opened"),
                        Query(rate("tidemark_database_connection_failures_total"), "failed"),
                    ),
                ),
                Panel(
                    "Written behind",
                    "percentunit",
                    "Time that writing counts of devices and minutes takes, of the time of batches.",
                    (
                        Query(
                            f"{rate('tidemark_minute_flush_seconds_total')}"
                            f" / {rate('tidemark_batch_duration_seconds_sum')}",
                            "minutes",
                        ),
                        Query(
                            f"{rate('tidemark_health_flush_seconds_total')}"
                            f" / {rate('tidemark_batch_duration_seconds_sum')}",
                            "devices",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Health and alerts",
            (
                Panel(
                    "Score",
                    "short",
                    "The health of all tenants together, from 0 to 100, as the servers last judged it.",
                    (Query(highest("tidemark_health_score"), "score"),),
                    is_number=True,
                ),
                Panel(
                    "Status",
                    "short",
                    "1 for the status of all tenants together. unknown: there are too few data to judge.",
                    (Query(highest("tidemark_health_status", "status"), "{{status}}"),),
                    is_number=True,
                ),
                Panel(
                    "Tenants by status",
                    "short",
                    "run.py monitor names them, with reasons.",
                    (Query(highest("tidemark_health_tenants", "status"), "{{status}}"),),
                    is_number=True,
                ),
                Panel(
                    "Last judged",
                    "s",
                    "How long ago. After 15 minutes the status is unknown.",
                    (Query(f"time() - {highest('tidemark_health_judged_timestamp_seconds')}", "ago"),),
                    is_number=True,
                ),
                Panel(
                    "Alerts sent",
                    "short",
                    "Attempts to tell the receivers of [alerts], over the time that is shown.",
                    (
                        Query(
                            grown("tidemark_alerts_sent_total", "target", "outcome"), "{{target}} {{outcome}}"
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Jobs (their label job is called exported_job here: Prometheus itself uses job)",
            (
                Panel(
                    "Since the last success",
                    "s",
                    "How long ago a run of each job last succeeded, in any process.",
                    (
                        Query(
                            f"time() - {_SUCCEEDED_AT}",
                            "{{exported_job}}",
                        ),
                    ),
                ),
                Panel(
                    "Runs",
                    "short",
                    "Runs that ended, over the time that is shown.",
                    (
                        Query(
                            grown("tidemark_job_runs_total", "exported_job", "outcome"),
                            "{{exported_job}} {{outcome}}",
                        ),
                    ),
                ),
                Panel(
                    "Minutes written behind",
                    "ops",
                    "Rows of minutes that were written, and writes of them that failed.",
                    (
                        Query(rate("tidemark_minute_rows_total"), "rows"),
                        Query(rate("tidemark_minute_flush_failures_total"), "failed"),
                        Query(rate("tidemark_minute_rows_dropped_total"), "dropped"),
                    ),
                ),
                Panel(
                    "Telemetry of devices",
                    "ops",
                    "Messages with what devices counted themselves, by what became of them.",
                    (Query(rate("tidemark_telemetry_total", "outcome"), "{{outcome}}"),),
                ),
            ),
        ),
        Row(
            "Disks",
            (
                Panel(
                    "Free",
                    "bytes",
                    "Free space where the database and the files are, where that is known.",
                    (
                        Query(lowest("tidemark_database_free_bytes"), "database"),
                        Query(lowest("tidemark_files_free_bytes", "instance"), "files {{instance}}"),
                    ),
                ),
                Panel(
                    "Free, of the disk",
                    "percentunit",
                    "The same as a part of the disk. Below 10 % an alert fires.",
                    (
                        Query(
                            f"{lowest('tidemark_database_free_bytes')}"
                            f" / {lowest('tidemark_database_disk_bytes')}",
                            "database",
                        ),
                        Query(
                            f"{lowest('tidemark_files_free_bytes', 'instance')}"
                            f" / {lowest('tidemark_files_disk_bytes', 'instance')}",
                            "files {{instance}}",
                        ),
                    ),
                ),
                Panel(
                    "Database full",
                    "short",
                    "1 while pushes are refused because the database has no room.",
                    (Query(highest("tidemark_database_full"), "full"),),
                ),
            ),
        ),
        Row(
            "Redis",
            (
                Panel(
                    "Processes on the bus",
                    "short",
                    "1 for each process that Redis carries messages for.",
                    (Query(total("tidemark_bus_up"), "up"),),
                ),
                Panel(
                    "Round trip",
                    "s",
                    "How long the last message took to come back.",
                    (Query(highest("tidemark_bus_round_trip_seconds"), "longest"),),
                ),
                Panel(
                    "Messages",
                    "ops",
                    "Messages between processes, and those that were none or had a wrong signature.",
                    (
                        Query(rate("tidemark_bus_published_total"), "published"),
                        Query(rate("tidemark_bus_received_total"), "received"),
                        Query(rate("tidemark_bus_malformed_total"), "malformed"),
                        Query(rate("tidemark_bus_rejected_total"), "rejected"),
                    ),
                ),
                Panel(
                    "Losses",
                    "short",
                    "How often Redis went away, over the time that is shown.",
                    (
                        Query(
                            grown("tidemark_bus_losses_total"),
                            "losses",
                        ),
                    ),
                ),
            ),
        ),
    ),
)
