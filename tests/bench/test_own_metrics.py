"""The figures of a run, read from what the server tells of itself."""

from __future__ import annotations

from bench.report.own_metrics import figures_of, page_of
from bench.report.results import Figure

_BEFORE = """\
# HELP tidemark_policy_hits_total Reads
# TYPE tidemark_policy_hits_total counter
tidemark_policy_hits_total{worker="1"} 100
tidemark_policy_hits_total{worker="2"} 100
tidemark_policy_misses_total{worker="1"} 0
tidemark_policy_read_duration_seconds_bucket{le="0.001",worker="1"} 10
tidemark_policy_read_duration_seconds_bucket{le="0.2",worker="1"} 10
tidemark_policy_read_duration_seconds_bucket{le="+Inf",worker="1"} 10
tidemark_policy_read_duration_seconds_sum{worker="1"} 0.5
tidemark_policy_read_duration_seconds_count{worker="1"} 10
tidemark_syncs_total{outcome="succeeded",worker="1"} 10.0
tidemark_syncs_total{outcome="failed",worker="1"} 1.0
tidemark_database_round_trips_total{pool="commit",worker="1"} 20
tidemark_database_statements_total{pool="commit",worker="1"} 60
"""
_CONNECTING = """\
tidemark_device_reads_total{worker="1"} 4
"""
_CONNECTED = """\
tidemark_device_reads_total{worker="1"} 5
tidemark_policy_read_duration_seconds_bucket{le="0.001",worker="1"} 10
tidemark_policy_read_duration_seconds_bucket{le="0.2",worker="1"} 12
tidemark_policy_read_duration_seconds_bucket{le="+Inf",worker="1"} 12
tidemark_policy_read_duration_seconds_sum{worker="1"} 0.7
tidemark_policy_read_duration_seconds_count{worker="1"} 12
tidemark_device_read_duration_seconds_bucket{le="0.2",worker="1"} 0
tidemark_device_read_duration_seconds_bucket{le="1.0",worker="1"} 5
tidemark_device_read_duration_seconds_bucket{le="+Inf",worker="1"} 5
tidemark_device_read_duration_seconds_sum{worker="1"} 3
tidemark_device_read_duration_seconds_count{worker="1"} 5
"""
_AFTER = """\
tidemark_policy_hits_total{worker="1"} 190
tidemark_policy_hits_total{worker="2"} 100
tidemark_policy_misses_total{worker="1"} 10
tidemark_policy_read_duration_seconds_bucket{le="0.001",worker="1"} 28
tidemark_policy_read_duration_seconds_bucket{le="0.2",worker="1"} 30
tidemark_policy_read_duration_seconds_bucket{le="+Inf",worker="1"} 30
tidemark_policy_read_duration_seconds_sum{worker="1"} 0.709
tidemark_policy_read_duration_seconds_count{worker="1"} 30
tidemark_device_hits_total{worker="1"} 40
tidemark_device_misses_total{worker="1"} 5
tidemark_device_reads_total{worker="1"} 5
tidemark_device_read_duration_seconds_bucket{le="0.2",worker="1"} 0
tidemark_device_read_duration_seconds_bucket{le="1.0",worker="1"} 5
tidemark_device_read_duration_seconds_bucket{le="+Inf",worker="1"} 5
tidemark_device_read_duration_seconds_sum{worker="1"} 3
tidemark_device_read_duration_seconds_count{worker="1"} 5
tidemark_device_row_duration_seconds_bucket{le="0.005",worker="1"} 4
tidemark_device_row_duration_seconds_bucket{le="+Inf",worker="1"} 4
tidemark_device_row_duration_seconds_sum{worker="1"} 0.012
tidemark_device_row_duration_seconds_count{worker="1"} 4
tidemark_syncs_total{outcome="succeeded",worker="1"} 107.0
tidemark_syncs_total{outcome="failed",worker="1"} 2.0
tidemark_syncs_total{outcome="refused",worker="1"} 2.0
tidemark_database_round_trips_total{pool="commit",worker="1"} 214
tidemark_database_statements_total{pool="commit",worker="1"} 642
"""


def test_figures_are_what_grew_and_reads_are_cold_until_the_last_device_has_connected() -> None:
    found = list(figures_of(page_of(_BEFORE), list(map(page_of, (_CONNECTING, _CONNECTED, _AFTER)))))
    assert found == [
        Figure("policies read from memory", 90.0, "%", "of 100 reads"),
        Figure("cold read of policies, 95 % within", 200.0, "ms", "of 2 reads, mean 100 ms"),
        Figure("warm read of policies, 95 % within", 1.0, "ms", "of 18 reads, mean 0.5 ms"),
        Figure("devices read from memory", 80.0, "%", "of 50 reads"),
        Figure("cold read of devices, 95 % within", 1000.0, "ms", "of 5 reads, mean 600 ms"),
        Figure("row of a new device, 95 % within", 5.0, "ms", "of 4 writes, mean 3 ms"),
        Figure("requests to PostgreSQL", 2.0, "a sync", "6 statements a sync"),
    ]


def test_figures_of_a_server_without_these_metrics_are_none() -> None:
    assert list(figures_of(page_of(""), [page_of("tidemark_batches_total 7\n")])) == []
