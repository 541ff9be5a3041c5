"""What receivers of alerts know, as rows; a row is taken by one process before it sends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, get_args

import msgspec

from engine.operate.alert_delivery import HELD_S, Change, DueAlert
from engine.operate.monitor.alerts import Alert, AlertKey, AlertState
from engine.operate.monitor.report import Finding, MetricName, Severity
from storage.postgres.driver import Row
from storage.postgres.pool import Database
from storage.postgres.transactions import Transaction

#: Servers of a later version may have metrics that this one does not know: their rows are left to those.
_KNOWN: Final = "metric IN (" + ", ".join(f"'{name}'" for name in get_args(MetricName)) + ")"
_ROWS: Final = (
    "SELECT tenant, metric, found::text, told, pending::text FROM alerts"
    f" WHERE target = %(target)s AND {_KNOWN}"
)
_KEY: Final = "target = %(target)s AND tenant = %(tenant)s AND metric = %(metric)s"
#: A new alert is due at once, whatever the pauses of the one before.
_PUT: Final = (
    "INSERT INTO alerts AS a (target, tenant, metric, found, told, pending)"
    " VALUES (%(target)s, %(tenant)s, %(metric)s, %(found)s::json, %(told)s, %(pending)s::json)"
    " ON CONFLICT (target, tenant, metric) DO UPDATE SET found = excluded.found, told = excluded.told,"
    " pending = excluded.pending"
)
_PUT_NEW: Final = _PUT + ", attempts = 0, due_at = excluded.due_at, held_until = NULL"
#: What is not checked any more is of a receiver that is not told any more.
_FORGET: Final = "DELETE FROM alerts WHERE checked_at < now() - interval '30 days'"
_TAKE: Final = (
    f"UPDATE alerts SET held_until = now() + interval '{HELD_S} seconds' WHERE (target, tenant, metric) IN"
    " (SELECT target, tenant, metric FROM alerts WHERE pending IS NOT NULL AND due_at <= now()"
    f" AND (held_until IS NULL OR held_until < now()) AND target = %(target)s AND {_KNOWN}"
    " ORDER BY due_at LIMIT %(most)s FOR UPDATE SKIP LOCKED)"
    " RETURNING target, tenant, metric, pending::text, attempts"
)
_PUT_OFF: Final = (
    "UPDATE alerts SET attempts = attempts + 1, held_until = NULL,"
    " due_at = now() + %(pause)s::float8 * interval '1 second'"
    f" WHERE {_KEY} AND pending->>'id' = %(id)s"
)


class PostgresAlerts:
    """``engine.operate.alert_delivery.AlertStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def change(self, target: str, change: Change) -> None:
        """Change the states of a receiver."""
        async with self._database.transaction() as transaction:
            of = {"target": target}
            await transaction.query("SELECT pg_advisory_xact_lock(hashtext(%(target)s))", of)
            found = await transaction.query(_ROWS + " FOR UPDATE", of)
            states = {_key(row[0], row[1]): _state(*row[2:]) for row in found}
            await transaction.query("UPDATE alerts SET checked_at = now() WHERE target = %(target)s", of)
            for key, state in sorted(
                change(states).items(), key=lambda one: (one[0].tenant or "", one[0][1])
            ):
                before = states.get(key, AlertState())
                await _put(transaction, target, key, state, new=state.pending != before.pending)
            await transaction.query(_FORGET)

    async def take(self, target: str, most: int) -> list[DueAlert]:
        """Take alerts that are due."""
        rows = await self._database.execute(_TAKE, {"target": target, "most": most})
        return [_due(row) for row in rows]

    async def taken_in(self, due: DueAlert, change: Callable[[AlertState], AlertState]) -> None:
        """Change the state of an alert that the receiver has."""
        async with self._database.transaction() as transaction:
            found = await transaction.query(
                f"{_ROWS} AND {_KEY} AND pending->>'id' = %(id)s FOR UPDATE", _values(due)
            )
            if found:
                await _put(transaction, due.target, due.key, change(_state(*found[0][2:])), new=True)

    async def put_off(self, due: DueAlert, pause_s: float) -> None:
        """Have an alert due again after a pause."""
        await self._database.execute(_PUT_OFF, {**_values(due), "pause": pause_s})

    async def waiting(self, targets: Sequence[str]) -> int:
        """Return how many alerts are still to be sent."""
        ((count,),) = await self._database.query(
            "SELECT count(*) FROM alerts"
            f" WHERE pending IS NOT NULL AND target = ANY (%(targets)s) AND {_KNOWN}",
            {"targets": list(targets)},
        )
        return int(count)


async def _put(transaction: Transaction, target: str, key: AlertKey, state: AlertState, *, new: bool) -> None:
    values = {
        "target": target,
        "tenant": key.tenant or "",
        "metric": key.metric,
        "found": _text(state.found),
        "told": state.told,
        "pending": _text(state.pending),
    }
    if state == AlertState():
        await transaction.query(f"DELETE FROM alerts WHERE {_KEY}", values)
    else:
        await transaction.query(_PUT_NEW if new else _PUT, values)


def _text(value: Finding | Alert | None) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def _key(tenant: str, metric: str) -> AlertKey:
    return AlertKey(tenant or None, msgspec.convert(metric, MetricName))


def _state(found: str | None, told: str | None, pending: str | None) -> AlertState:
    return AlertState(
        None if found is None else msgspec.json.decode(found, type=Finding),
        None if told is None else msgspec.convert(told, Severity),
        None if pending is None else msgspec.json.decode(pending, type=Alert),
    )


def _due(row: Row) -> DueAlert:
    target, tenant, metric, pending, attempts = row
    return DueAlert(target, _key(tenant, metric), msgspec.json.decode(pending, type=Alert), attempts)


def _values(due: DueAlert) -> dict[str, object]:
    return {
        "target": due.target,
        "tenant": due.key.tenant or "",
        "metric": due.key.metric,
        "id": due.alert.id,
    }
