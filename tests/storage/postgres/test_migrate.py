"""The schema's migrations: up, down, up again; many at once; killed half-way."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from engine.operate.ports import RefusedError
from engine.runtime.ports import StoreError, StoreUnavailableError
from storage.postgres import server_processes
from storage.postgres.migrate import migrate, newest_migration, status
from storage.postgres.pool import Database
from tests.harness.in_process_server import Running
from tests.harness.services import execute, rows

_ROOT = Path(__file__).parents[3]
_FILES = sorted((_ROOT / "storage/migrations").glob("*.sql"))
_ALL = [file.stem for file in _FILES if not file.stem.endswith(".rollback")]

#: These change rows, comments or the text of a function, and no table.
_NO_TABLE = {
    "0017.task_field_merge",
    "0025.tenant_usage_filled",
    "0044.sealed_values",
    "0060.counted_devices",
}

#: Everything in the schema but yoyo's own book, in words.
_COLUMNS = """
    SELECT c.relname, c.relkind, c.reloptions, pg_get_partkeydef(c.oid), pg_get_expr(c.relpartbound, c.oid),
        a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attcollation,
        pg_get_expr(d.adbin, d.adrelid)
    FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relname NOT LIKE '%yoyo%'
    AND c.relkind IN ('r', 'p') ORDER BY c.relname, a.attnum
"""
_INDEXES = """
    SELECT indexdef FROM pg_indexes
    WHERE schemaname = current_schema() AND tablename NOT LIKE '%yoyo%' ORDER BY 1
"""
_CONSTRAINTS = """
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = current_schema()::regnamespace
    AND conrelid::regclass::text NOT LIKE '%yoyo%' ORDER BY 1, 2
"""

_ROW_POLICIES = """
    SELECT polrelid::regclass::text, relrowsecurity, polname, pg_get_expr(polqual, polrelid)
    FROM pg_policy JOIN pg_class AS c ON c.oid = polrelid ORDER BY 1, 3
"""

_WAITING = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

Shape = list[list[tuple[object, ...]]]


def shape(dsn: str) -> Shape:
    """Read what there is: columns, indexes, constraints, policies."""
    return [rows(dsn, statement) for statement in (_COLUMNS, _INDEXES, _CONSTRAINTS, _ROW_POLICIES)]


def test_migrate_up_down_by_steps_and_up_gives_the_same_schema(empty_dsn: str) -> None:
    on_the_way: list[Shape] = [shape(empty_dsn)]
    for number, name in enumerate(_ALL, 1):
        assert migrate(empty_dsn, number) == [name]
        on_the_way.append(shape(empty_dsn))
        assert (on_the_way[-1] != on_the_way[-2]) is (name not in _NO_TABLE)
    for number, name in reversed(list(enumerate(_ALL, 1))):
        assert migrate(empty_dsn, down=True) == [name]
        assert shape(empty_dsn) == on_the_way[number - 1]
    assert migrate(empty_dsn, down=True) == []
    assert migrate(empty_dsn) == _ALL
    assert shape(empty_dsn) == on_the_way[-1]
    assert migrate(empty_dsn) == []


def test_migrate_down_to_takes_back_all_later_migrations(dsn: str) -> None:
    assert migrate(dsn, 3, down=True) == _ALL[:2:-1]
    assert [one.number for one in status(dsn) if one.applied_at] == [1, 2, 3]
    with pytest.raises(RefusedError, match="stands at 3, past 2"):  # up never takes back
        migrate(dsn, 2)
    assert migrate(dsn, 5, down=True) == [], "down never applies"
    assert migrate(dsn, 5) == _ALL[3:5]


def test_migrate_down_held_changes_keeps_the_last_change_and_all_rows(dsn: str) -> None:
    change = '{"op":"%s","base":%s,"at_us":%d,"sent_at_us":%d,"data":%s}'
    held = ",".join([change % ("put", "4", 5, 4, '{"a":1}'), change % ("patch", "null", 7, 6, '{"b":1.0}')])
    deleted = change % ("delete", "3", 9, 9, "null")
    columns = (
        "tenant_id, conflict_id, domain, record_id, device_id, policy, outcome, server_version, client_op,"
        " client_at_us, client_data, opened_at_us, client_changes, held_in"
    )
    execute(
        dsn,
        f"INSERT INTO conflict_resolution_log ({columns}) VALUES"
        f" (1, 'c1', 'note', 'r1', 'd', 'manual', 'open', 1, 'put', 1, '{{}}', 1, '[{held}]', NULL),"
        f" (1, 'c2', 'note', 'r2', 'd', 'manual', 'open', 1, 'put', 1, '{{}}', 1, '[{deleted}]', NULL),"
        " (1, 'c3', 'note', 'r3', 'd', 'manual', 'open', 1, 'put', 1, '{}', 1, NULL, NULL),"
        " (1, 'c4', 'note', 'r1', 'd', 'manual', 'held', 1, 'put', 5, '{\"a\":1}', 1, NULL, 'c1')",
    )
    before = _ALL.index("0018.held_changes")
    migrate(dsn, before, down=True)
    kept = "conflict_id, outcome, client_op, client_base, client_at_us, client_data::text"
    assert rows(dsn, f"SELECT {kept} FROM conflict_resolution_log ORDER BY conflict_id") == [
        ("c1", "open", "patch", None, 7, '{"b":1.0}'),
        ("c2", "open", "delete", 3, 9, None),
        ("c3", "open", "put", None, 1, "{}"),
        ("c4", "held", "put", None, 5, '{"a":1}'),
    ]
    migrate(dsn, before + 1)
    counts = "SELECT DISTINCT client_count, client_changes::text, held_in FROM conflict_resolution_log"
    assert rows(dsn, counts) == [(1, None, None)]


def test_migrate_last_data_columns_made_before_are_used(empty_dsn: str) -> None:
    upgrades = (_ROOT / "docs/upgrades.md").read_text()
    statements = upgrades[upgrades.index("```sql") + 6 :].split("```")[0].split(";")
    migrate(empty_dsn)
    whole = shape(empty_dsn)
    migrate(empty_dsn, 19, down=True)
    for statement in filter(str.strip, statements):
        execute(empty_dsn, statement)
    assert migrate(empty_dsn) == _ALL[19:]
    assert shape(empty_dsn) == whole


def test_status_some_applied_lists_each_migration(empty_dsn: str) -> None:
    assert [one.applied_at for one in status(empty_dsn)] == [None] * len(_ALL)
    migrate(empty_dsn, 2)
    states = status(empty_dsn)
    assert [(one.number, one.name) for one in states] == list(enumerate(_ALL, 1))
    assert [one.applied_at is not None for one in states] == [True, True] + [False] * (len(_ALL) - 2)
    assert newest_migration() == _ALL[-1]


def _spawn(dsn: str) -> subprocess.Popen[str]:
    script = "import sys; from storage.postgres.migrate import migrate; print(*migrate(sys.argv[1]))"
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, dsn], cwd=_ROOT, stdout=subprocess.PIPE, text=True
    )


def test_migrate_hosts_at_once_apply_each_migration_once(empty_dsn: str) -> None:
    hosts = [_spawn(empty_dsn) for _ in range(4)]
    done: list[str] = []
    for host in hosts:
        done += host.communicate()[0].split()
        assert host.returncode == 0
    assert sorted(done) == _ALL
    assert all(one.applied_at for one in status(empty_dsn))


def test_migrate_killed_leaves_whole_steps_and_no_lock(empty_dsn: str) -> None:
    migrate(empty_dsn, 3)
    holder = psycopg2.connect(empty_dsn)
    try:
        # The fourth migration's table stands in its way, uncommitted: it waits in the middle of its step.
        holder.cursor().execute("CREATE TABLE events ()")
        host = _spawn(empty_dsn)
        while not rows(empty_dsn, _WAITING):
            assert host.poll() is None
        os.kill(host.pid, signal.SIGKILL)
        host.communicate()
    finally:
        holder.close()
    assert migrate(empty_dsn) == _ALL[3:]


def test_migrate_failing_step_leaves_nothing_and_names_the_reason(empty_dsn: str) -> None:
    execute(empty_dsn, "CREATE TABLE quarantine ()")
    with pytest.raises(StoreError, match='relation "quarantine" already exists'):
        migrate(empty_dsn)
    assert [one.number for one in status(empty_dsn) if one.applied_at] == [1, 2, 3, 4]
    execute(empty_dsn, "DROP TABLE quarantine")
    assert migrate(empty_dsn) == _ALL[4:]


def test_migrate_impossible_target_is_refused_in_a_sentence(dsn: str) -> None:
    with pytest.raises(RefusedError, match=f"there is no migration 99: they are numbered 1 to {len(_ALL)}"):
        migrate(dsn, 99)
    with pytest.raises(StoreUnavailableError) as away:
        migrate(f"{dsn} host=/nowhere")
    assert "\n" not in str(away.value)
    execute(dsn, "INSERT INTO _yoyo_migration VALUES ('x', '0099.of_a_later_version', now())")
    assert status(dsn)[-1].name == "0099.of_a_later_version"
    with pytest.raises(RefusedError, match=r"0099\.of_a_later_version, which this version does not know"):
        migrate(dsn, down=True)
    assert migrate(dsn) == []


def test_schema_growing_tables_lead_their_primary_key_with_the_tenant(dsn: str) -> None:
    found = rows(
        dsn,
        "SELECT c.relname, (SELECT attname FROM pg_attribute WHERE attrelid = c.oid AND attnum = i.indkey[0])"
        " FROM pg_class AS c LEFT JOIN pg_index AS i ON i.indrelid = c.oid AND i.indisprimary"
        " WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')"
        " AND c.relname NOT LIKE '%yoyo%' AND c.relname NOT IN"
        " ('alerts', 'audit_log', 'health_report', 'removed_tenants', 'cluster_state', 'job_runs',"
        " 'server_processes', 'master_keys', 'sealed_domains')",
    )
    assert ("records", "tenant_id") in found
    assert [table for table, first in found if first != "tenant_id"] == []


_POLICIES = (
    "SELECT t.name, p.domain, p.policy, p.updated_by FROM tenant_conflict_policy AS p"
    " JOIN tenants AS t USING (tenant_id) ORDER BY 1, 2"
)


@pytest.mark.parametrize(
    ("chosen_domains", "kept"),
    [((), ["work_order"]), (("work_order",), [])],
    ids=["as delivered", "named by the settings"],
)
def test_migration_field_merge_keeps_the_policy_of_tenants_that_exist(
    empty_dsn: str, chosen_domains: tuple[str, ...], kept: list[str]
) -> None:
    migrate(empty_dsn, 16)
    execute(
        empty_dsn,
        "INSERT INTO tenants (name) VALUES ('acme'), ('globex')",
        "INSERT INTO tenant_conflict_policy (tenant_id, domain, policy)"
        " SELECT tenant_id, 'task', 'manual' FROM tenants WHERE name = 'acme'",
    )
    migrate(empty_dsn, 17, chosen_domains=chosen_domains)
    execute(empty_dsn, "INSERT INTO tenants (name) VALUES ('new')")
    old = [("most_recent_wins", "migration")]
    assert rows(empty_dsn, _POLICIES) == [
        ("acme", "task", "manual", None),
        *(("acme", domain, *old[0]) for domain in kept),
        *(("globex", domain, *old[0]) for domain in ("task", *kept)),
    ]
    migrate(empty_dsn, 16, down=True)
    assert rows(empty_dsn, _POLICIES) == [("acme", "task", "manual", None)]


# -- a way back is asked for, and not taken from under a server -------------------------------


def _process(silent_s: int) -> str:
    return (
        "INSERT INTO server_processes VALUES"
        f" (gen_random_uuid(), 'db9, port 8080, process 7', now() - interval '{silent_s} seconds')"
    )


def test_migrate_down_while_a_process_runs_is_refused(dsn: str) -> None:
    execute(dsn, _process(silent_s=20))
    with pytest.raises(RefusedError, match="1 server processes use this database, such as db9, port 8080"):
        migrate(dsn, down=True)
    assert status(dsn)[-1].applied_at is not None
    execute(dsn, "DELETE FROM server_processes", _process(silent_s=31))
    assert migrate(dsn, down=True) == [_ALL[-1]]


def test_migrate_down_of_keys_is_refused_while_a_domain_is_sealed(dsn: str) -> None:
    execute(dsn, "INSERT INTO sealed_domains VALUES ('voice')")
    sealed = next(number for number, name in enumerate(_ALL, 1) if name == "0048.sealed_domains")
    migrate(dsn, sealed, down=True)
    with pytest.raises(RefusedError, match=r"data of voice are sealed, and no version from before 0048"):
        migrate(dsn, sealed - 1, down=True)
    execute(dsn, "DELETE FROM sealed_domains")
    assert migrate(dsn, sealed - 1, down=True) == [_ALL[sealed - 1]]


def test_migrate_to_past_step_without_down_names_the_command(dsn: str) -> None:
    with pytest.raises(RefusedError, match=f"stands at {len(_ALL)}, past 2: `run.py migrate --to 2 --down`"):
        migrate(dsn, 2)
    assert migrate(dsn, len(_ALL)) == []


async def test_server_process_is_recorded_until_it_drains(server: Running) -> None:
    with pytest.raises(RefusedError, match=f"port 0, process {os.getpid()}, seen [0-9]+ s ago"):
        migrate(server.dsn, down=True)
    await server.drained()
    assert rows(server.dsn, "SELECT FROM server_processes") == []


async def test_server_process_run_records_again_and_logs_a_failure_once(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(server_processes, "SAID_S", 0.01)
    monkeypatch.setattr(
        server_processes._log, "warning", lambda event, **_: said.append(event), raising=False
    )
    database = Database(dsn, 1)
    here = server_processes.ServerProcess(database, 8080)
    await here.record()
    execute(dsn, "UPDATE server_processes SET seen_at = 'epoch'")
    running = asyncio.create_task(here.run())
    try:
        await _until(lambda: rows(dsn, "SELECT FROM server_processes WHERE seen_at > 'epoch'") == [()])
        execute(dsn, "ALTER TABLE server_processes RENAME TO elsewhere")
        await _until(lambda: said == ["server_process_not_recorded"])
        execute(dsn, "ALTER TABLE elsewhere RENAME TO server_processes", "TRUNCATE server_processes")
        await _until(lambda: rows(dsn, "SELECT FROM server_processes") == [()])
    finally:
        running.cancel()
        await database.close()
    assert said == ["server_process_not_recorded"]


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


def test_migration_tenant_usage_fills_what_tenants_hold(empty_dsn: str) -> None:
    migrate(empty_dsn, 23)
    ahead_us = "((extract(epoch FROM now()) + 90000) * 1000000)::bigint"
    execute(
        empty_dsn,
        "INSERT INTO tenants (name) VALUES ('acme'), ('globex')",
        "INSERT INTO tenant_counters SELECT tenant_id, 3 FROM tenants",
        "INSERT INTO records (tenant_id, domain, id, version, seq, at_us, chain_from, data, fields,"
        " last_data) VALUES (1, 'task', 'a', 1, 1, 0, 1, '{\"a\":\"\u00e4\"}', '{}', null),"
        " (1, 'task', 'b', 1, 2, 0, 1, null, null, '{}')",
        "INSERT INTO events SELECT 1, 'metrics', 'a', at, 0, 'phone', '{\"b\":1}'"
        f" FROM unnest(ARRAY[0, {ahead_us}]) AS at",
        "INSERT INTO quarantine (tenant_id, quarantine_id, device_id, item, code, message, at_us)"
        " VALUES (1, 'q', 'phone', '{\"\u00e4\":1}', 'x', 'y', 0)",
        "INSERT INTO sync_idempotency_record VALUES (1, gen_random_uuid(), now(), '', '[]')",
        "INSERT INTO conflict_resolution_log (tenant_id, conflict_id, domain, record_id, device_id, policy,"
        " outcome, server_version, server_data, client_op, client_at_us, client_data, client_changes,"
        " opened_at_us)"
        " VALUES (1, 'c', 'task', 'a', 'phone', 'manual', 'open', 1, '{}', 'delete', 0, null,"
        ' \'[{"data":{"a":1}},{"data":null}]\', 0)',
    )
    migrate(empty_dsn)
    assert rows(
        empty_dsn,
        "SELECT seq::int, record_rows::int, record_bytes::int, conflict_rows::int, conflict_bytes::int,"
        " quarantine_rows::int, quarantine_bytes::int, event_rows::int, event_bytes::int, answer_rows::int,"
        " answer_bytes::int, future_event_rows::int, counted_at FROM tenant_counters ORDER BY tenant_id",
    ) == [(3, 2, 14, 1, 9, 1, 8, 2, 14, 1, 2, 1, None), (3, *[0] * 11, None)]


def test_migration_tenant_devices_keeps_no_upload_waiting_while_devices_are_busy(dsn: str) -> None:
    before = _ALL.index("0055.tenant_devices")
    migrate(dsn, before, down=True)
    execute(
        dsn,
        "INSERT INTO tenants (name) VALUES ('acme'), ('globex')",
        "INSERT INTO tenant_storage (tenant_id, reserved_bytes) VALUES (1, 7)",
        "INSERT INTO devices (tenant_id, device_id) VALUES (1, 'a'), (1, 'b'), (2, 'c')",
    )
    with ThreadPoolExecutor() as others, closing(psycopg2.connect(dsn)) as busy:
        with busy, busy.cursor() as cursor:
            cursor.execute("INSERT INTO devices (tenant_id, device_id) VALUES (2, 'd')")
            migrating = others.submit(migrate, dsn, before + 1)
            while not (migrating.done() or rows(dsn, _WAITING)):
                pass
            execute(dsn, "SET lock_timeout = '1ms'; UPDATE tenant_storage SET reserved_bytes = 8")
        assert migrating.result(30) == ["0055.tenant_devices"]
    assert rows(dsn, "SELECT tenant_id, reserved_bytes::int, device_rows FROM tenant_storage ORDER BY 1") == [
        (1, 8, 2),
        (2, 0, 2),
    ]
