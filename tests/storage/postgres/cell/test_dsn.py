"""The schema of a cell travels in the DSN, and nothing of it is sent."""

from __future__ import annotations

import pytest
from psycopg2.extensions import parse_dsn

from storage.postgres.cell.dsn import schema_of, with_schema
from storage.postgres.hosts import hosts_of, reordered

URI = "postgresql://user:p%40ss@one,two:5433/db?sslmode=require"


@pytest.mark.parametrize("dsn", ["host=one dbname=db", URI, "dbname=db options='-c statement_timeout=7s'"])
def test_dsn_carries_a_schema_that_no_host_is_sent(dsn: str) -> None:
    carried = with_schema(dsn, "cell_a")
    assert schema_of(carried) == "cell_a"
    assert schema_of(dsn) == ""
    assert [parse_dsn(one.dsn) for one in hosts_of(carried)] == [parse_dsn(one.dsn) for one in hosts_of(dsn)]


def test_dsn_carries_the_last_schema_alone() -> None:
    carried = with_schema(with_schema("dbname=db", "cell_a"), "cell_b")
    assert parse_dsn(carried) == {"dbname": "db", "options": "-c tidemark.schema=cell_b"}


def test_dsn_of_a_cell_sends_no_search_path() -> None:
    carried = with_schema("dbname=db options='-c search_path=x -c jit=off'", "cell_a")
    assert [parse_dsn(one.dsn)["options"] for one in hosts_of(carried)] == ["-c jit=off"]
    plain = "dbname=db options='-c search_path=x'"
    assert [parse_dsn(one.dsn)["options"] for one in hosts_of(plain)] == ["-c search_path=x"]


@pytest.mark.parametrize(("dsn", "schema"), [("", "cell_a"), ("dbname=db", ""), ("no dsn at all", "cell_a")])
def test_dsn_without_a_schema_or_unreadable_stays_as_it_is(dsn: str, schema: str) -> None:
    assert with_schema(dsn, schema) == dsn
    assert schema_of(dsn) == ""


def test_dsn_of_a_new_process_carries_the_schema_too() -> None:
    assert schema_of(reordered(with_schema(URI, "cell_a"))) == "cell_a"
