"""How PostgreSQL finds uploads: by the right index, also by a plan that is made while there are none."""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg2
import pytest

from storage.postgres.connection import Statement
from storage.stores import upload_reads, uploads

ASKED = [
    (name, value)
    for module in (uploads, upload_reads)
    for name, value in vars(module).items()
    if isinstance(value, Statement) and "upload_session" in value.text
]


def indexes(cursor: psycopg2.extensions.cursor, statement: Statement) -> Iterator[str]:
    """Name the indexes of a statement's plan, as it is made and kept."""
    cursor.execute(statement.preparation.replace("%%", "%"))
    values = len(set(re.findall(r"%\((\w+)\)s", statement.text)))
    cursor.execute(f"EXPLAIN EXECUTE {statement.name} ({', '.join(['NULL'] * values)})")
    for (line,) in cursor.fetchall():
        assert "Seq Scan" not in line, line
        yield from re.findall(r"(?: using |Bitmap Index Scan on )(\w+)", line)


@pytest.mark.parametrize("statement", [one for _, one in ASKED], ids=[name for name, _ in ASKED])
def test_upload_statements_never_scan_a_tenant(dsn: str, statement: Statement) -> None:
    connection = psycopg2.connect(dsn)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan")
            used = set(indexes(cursor, statement))
    finally:
        connection.close()
    by_record = "record_id = " in statement.text
    assert ("upload_session_by_record" in used) is by_record, used
    assert ("upload_session_begun" in used) is ("created_at > " in statement.text), used
