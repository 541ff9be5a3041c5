"""Records and events of a domain, page by page: short transactions, so that counters stay fast."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any, Final

from engine.model.domains import Domain
from engine.model.rows import NO_FILES
from engine.operate.export import Row, compact, instant
from engine.operate.ports import RefusedError
from engine.wire.timestamps import EARLIEST_US
from storage.postgres import driver
from storage.postgres.partitions.bounds import event_days
from storage.postgres.pool import Database
from storage.stores.audit import by_account
from storage.stores.sealed.sealing import EVENT_DATA, RECORD_DATA, RECORD_FILES, Sealing
from storage.stores.tenant_rows import tenant_id_of

#: The memory of a page, estimated by the page before, and its rows: at first, and at most.
_PAGE_BYTES: Final = 8 << 20
_FIRST_ROWS: Final = 200
_MOST_ROWS: Final = 5000

#: Rows out of the range are dropped here and not in SQL, so that each page reads a bounded number of rows.
_RECORDS: Final = (
    "SELECT id, w.within, version, seq, at_us, sent_at_us, device_id,"
    " CASE WHEN w.within THEN data::text END, CASE WHEN w.within THEN attachments::text END FROM records"
    " CROSS JOIN LATERAL (SELECT at_us >= %(from)s AND at_us < %(to)s AS within) AS w"
    " WHERE tenant_id = %(tenant)s AND domain = %(domain)s AND id > %(after)s ORDER BY id LIMIT %(rows)s"
)
_OF_PAGE: Final = (
    "WHERE tenant_id = %(tenant)s AND domain = %(domain)s AND (id, sent_at_us) > (%(after)s, %(sent)s)"
    " AND sent_at_us >= %(from)s AND sent_at_us < %(to)s"
)
#: Events of ``events_later`` come once, whether it is detached now or not
#: (storage/postgres/partitions/maintenance.py).
_EVENTS: Final = (
    "SELECT DISTINCT ON (id, sent_at_us) id, sent_at_us, at_us,"
    " (extract(epoch FROM received_at) * 1000000)::bigint, device_id, data::text"
    f" FROM (SELECT * FROM events {_OF_PAGE} UNION ALL SELECT * FROM events_later {_OF_PAGE}) AS e"
    " ORDER BY id, sent_at_us LIMIT %(rows)s"
)
#: The range of a bigint.
_EARLIEST_US: Final = -(1 << 63)
_LATEST_US: Final = (1 << 63) - 1


class PostgresExport:
    """``engine.operate.export.ExportStore``; ``domains`` are those of the settings."""

    def __init__(self, database: Database, domains: Mapping[str, Domain], sealing: Sealing) -> None:
        self._database = database
        self._domains = domains
        self._sealing = sealing

    async def pages(
        self,
        tenant: str,
        domain: str,
        from_us: int | None,
        to_us: int | None,
        unreadable: Callable[[str], None],
    ) -> AsyncIterator[list[Row]]:
        """Yield rows in the order of their keys, events day by day; the export is in the audit log before."""
        if domain not in self._domains:
            raise RefusedError(f"there is no domain {domain}: choose one of {', '.join(self._domains)}")
        begins_us = _EARLIEST_US if from_us is None else from_us
        ends_us = _LATEST_US if to_us is None else to_us
        database = self._database
        tenant_id = await tenant_id_of(database, tenant)
        values = {"tenant": tenant_id, "domain": domain}
        async with database.transaction(tenants=[tenant_id]) as transaction:
            bounds = {"from": instant(from_us), "to": instant(to_us)}
            await transaction.note(by_account("data_exported", domain, tenant, tenant_id, bounds))
        opened = self._sealing.opened

        def left_out(row: driver.Row) -> None:
            unreadable(row[0])

        if self._domains[domain].kind == "record":
            async for page in _records(database, values | {"from": begins_us, "to": ends_us}):
                yield await opened(page, partial(_record, self._sealing, tenant_id, domain), left_out)
            return
        for day_us, next_us in await event_days(database):
            first_us, last_us = max(begins_us, day_us), min(ends_us, next_us)
            if first_us < last_us:
                async for page in _events(database, values | {"from": first_us, "to": last_us}):
                    yield await opened(page, partial(_event, self._sealing, tenant_id, domain), left_out)
        await event_days(database)  # raises if the last partition was detached while pages were read


async def _records(database: Database, values: dict[str, Any]) -> AsyncIterator[list[driver.Row]]:
    values = values | {"after": ""}
    async for page in _paged(database, _RECORDS, values):
        values["after"] = page[-1][0]
        yield [row for row in page if row[1]]


def _record(sealing: Sealing, tenant_id: int, domain: str, row: driver.Row) -> Row:
    record_id, _, version, seq, at_us, sent_at_us, device_id, stored, stored_files = row
    data = sealing.open(RECORD_DATA, tenant_id, domain, record_id, version, stored)
    files = sealing.open(RECORD_FILES, tenant_id, domain, record_id, version, stored_files)
    fixed = {
        "id": record_id,
        "version": version,
        "seq": seq,
        "at": instant(at_us),
        # The earliest time stands for none, so that changes without ``at`` are ordered.
        "sent_at": None if sent_at_us == EARLIEST_US else instant(sent_at_us),
        "device_id": device_id,
        "deleted": data is None,
        "attachments": compact(files or NO_FILES),
    }
    return Row(fixed, None if data is None else compact(data))


async def _events(database: Database, values: dict[str, Any]) -> AsyncIterator[list[driver.Row]]:
    values = values | {"after": "", "sent": _EARLIEST_US}
    async for page in _paged(database, _EVENTS, values):
        values["after"], values["sent"] = page[-1][:2]
        yield page


def _event(sealing: Sealing, tenant_id: int, domain: str, row: driver.Row) -> Row:
    event_id, sent_at_us, at_us, received_us, device_id, stored = row
    data = sealing.open(EVENT_DATA, tenant_id, domain, event_id, sent_at_us, stored)
    assert data is not None
    fixed = {
        "id": event_id,
        "at": instant(at_us),
        "sent_at": instant(sent_at_us),
        "received_at": instant(received_us),
        "device_id": device_id,
    }
    return Row(fixed, compact(data))


async def _paged(
    database: Database, statement: str, values: dict[str, Any]
) -> AsyncIterator[list[driver.Row]]:
    """Run a statement until it returns nothing more. The caller sets in ``values`` where a page begins."""
    rows = _FIRST_ROWS
    while True:
        page = await database.query(statement, values | {"rows": rows}, [values["tenant"]])
        if page:
            yield page
        if len(page) < rows:
            return
        size_bytes = sum(len(cell) for row in page for cell in row if isinstance(cell, str))
        rows = min(max(1, _PAGE_BYTES * len(page) // max(1, size_bytes)), _MOST_ROWS)
