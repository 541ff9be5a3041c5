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
tidemark_policy_read_duration_seconds_bucket{le="0.01",worker="1"} 10
tidemark_policy_read_duration_seconds_bucket{le="+Inf",worker="1"} 10
tidemark_policy_read_duration_seconds_sum{worker="1"} 0.5
tidemark_policy_read_duration_seconds_count{worker="1"} 10
tidemark_syncs_total{outcome="succeeded",worker="1"} 10.0
tidemark_syncs_total{outcome="failed",worker="1"} 1.0
tidemark_database_round_trips_total{pool="commit",worker="1"} 20
tidemark_database_statements_total{pool="commit",worker="1"} 60
tidemark_database_connections{pool="commit",worker="1"} 1
tidemark_database_connections_busy{pool="commit",worker="1"} 1
tidemark_database_connections_limit{pool="commit",worker="1"} 2
"""
_DURING = """\
tidemark_database_connections{pool="commit",worker="1"} 2
tidemark_database_connections{pool="reads",worker="1"} 3
tidemark_database_connections_busy{pool="commit",worker="1"} 2
tidemark_database_connections_busy{pool="reads",worker="1"} 1
"""
_AFTER = """\
tidemark_policy_hits_total{worker="1"} 190
tidemark_policy_hits_total{worker="2"} 100
tidemark_policy_misses_total{worker="1"} 10
tidemark_policy_read_duration_seconds_bucket{le="0.001",worker="1"} 28
tidemark_policy_read_duration_seconds_bucket{le="0.01",worker="1"} 30
tidemark_policy_read_duration_seconds_bucket{le="+Inf",worker="1"} 30
tidemark_policy_read_duration_seconds_sum{worker="1"} 0.52
tidemark_policy_read_duration_seconds_count{worker="1"} 30
tidemark_syncs_total{outcome="succeeded",worker="1"} 107.0
tidemark_syncs_total{outcome="failed",worker="1"} 2.0
tidemark_syncs_total{outcome="refused",worker="1"} 2.0
tidemark_database_round_trips_total{pool="commit",worker="1"} 214
tidemark_database_statements_total{pool="commit",worker="1"} 642
tidemark_database_connections{pool="commit",worker="1"} 2
tidemark_database_connections_busy{pool="commit",worker="1"} 0
tidemark_database_connections_limit{pool="commit",worker="1"} 2
tidemark_database_connections_limit{pool="reads",worker="1"} 3
"""


def test_figures_are_what_grew_and_the_most_connections_of_all_pages() -> None:
    found = list(figures_of(page_of(_BEFORE), [page_of(_DURING), page_of(_AFTER)]))
    assert found == [
        Figure("policies read from memory", 90.0, "%", "of 100 reads"),
        Figure("read of policies, 95 % within", 10.0, "ms", "mean 1 ms"),
        Figure("connections to PostgreSQL", 5.0, "open", "3 in use at most, 5 allowed"),
        Figure("requests to PostgreSQL", 2.0, "a sync", "6 statements a sync"),
        Figure("success", 97.0, "%", "of 100 syncs, as the server counts"),
    ]


def test_figures_of_a_server_without_these_metrics_are_none() -> None:
    assert list(figures_of(page_of(""), [page_of("tidemark_batches_total 7\n")])) == []
