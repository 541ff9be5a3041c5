"""Reads of the feed. One statement reads a page and the tenant's counter, so both are of one snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Final

from engine.feed.ports import Page
from engine.model.rows import Record
from engine.runtime.ports import StoreError
from storage.postgres.arrays import int_array, text_array
from storage.postgres.connection import Statement
from storage.postgres.driver import Row
from storage.postgres.pool import Database
from storage.stores.sealed.sealing import RECORD_DATA, RECORD_FILES, Sealing

#: The most rows that one read by domain looks at; this takes about 5 ms.
PIECE_ROWS: Final = 5000
_BYTES: Final = "data_bytes + coalesce(octet_length(attachments::text), 0)"
#: The inner query reads one record more than asked, which tells whether there are more. The window function
#: sums the sizes without reading the data of the records that are left out.
_PAGE: Final = (
    "WITH {few}wanted AS (SELECT *, sum(size_bytes) OVER (ORDER BY seq) - size_bytes AS bytes_before,"
    " row_number() OVER (ORDER BY seq) AS place, count(*) OVER () AS found FROM ("
    "SELECT domain, id, version, seq, at_us, device_id, chain_from, data, attachments,"
    f" {_BYTES} AS size_bytes FROM {{rows}} ORDER BY seq LIMIT %(limit)s::int + 1) AS r)"
    " SELECT c.seq, w.found, w.domain, w.id, w.version, w.seq, w.at_us, w.device_id, w.chain_from,"
    " w.data::text, w.attachments::text, {read_to}"
    " FROM (SELECT coalesce((SELECT seq FROM tenant_counters WHERE tenant_id = %(tenant)s::int), 0) AS seq)"
    " AS c LEFT JOIN wanted AS w"
    " ON w.place <= %(limit)s::int AND (w.place = 1 OR w.bytes_before < %(bytes)s::bigint)"
    " ORDER BY w.seq"
)
#: Without statistics, as after a first load, the planner would read and sort all that follows, for each page
#: again: 12.8 ms in place of 2.1 at 30,000 records.
_BY_INDEX: Final = "SET LOCAL enable_bitmapscan = off; "
_ROWS: Final = "records WHERE tenant_id = %(tenant)s AND seq > %(after)s"
_ALL: Final = _PAGE.format(few="", rows=_ROWS, read_to="NULL::bigint")
#: The bound of rows counts rows of all domains; the wanted ones are selected afterwards. If the bound is
#: reached, the seq of the last row is found by the index alone.
_SOME: Final = _PAGE.format(
    few="",
    rows=f"(SELECT * FROM {_ROWS} ORDER BY seq LIMIT %(rows)s) AS piece"
    " WHERE domain = ANY(%(domains)s::text[])",
    read_to=f"(SELECT seq FROM {_ROWS} ORDER BY seq OFFSET %(rows)s - 1 LIMIT 1)",
)
#: Pages as they are asked for, by name, and values of any one of them: `run.py verify` looks at their plans.
PAGES: Final = {"page": _BY_INDEX + _ALL, "page_of_domains": _BY_INDEX + _SOME}
ANY_PAGE: Final = {"tenant": 0, "after": 1, "limit": 1, "bytes": 1, "domains": "{}", "rows": 1}
#: If the domains hold few rows in total, these are found by the primary key; the statement is written so that
#: its kept plan has no other way. The column of ``read_to`` has their number, at most one above the bound.
_FEW: Final = Statement(
    _PAGE.format(
        few="few AS MATERIALIZED (SELECT seq FROM records WHERE tenant_id = %(tenant)s::int"
        " AND domain = ANY(%(domains)s::text[]) LIMIT %(rows)s::int + 1), ",
        rows="(SELECT r.* FROM (SELECT seq FROM few WHERE seq > %(after)s::bigint ORDER BY seq"
        " LIMIT %(limit)s::int + 1) AS f JOIN records AS r"
        " ON r.tenant_id = %(tenant)s::int AND r.seq = f.seq AND r.seq > 0) AS found",
        read_to="(SELECT count(*) FROM few)",
    )
)
#: Pages of several tenants. "seq > 0" is written out, because a plan for any parameters could not use the
#: partial index otherwise.
_NEWS: Final = Statement(
    "SELECT t.tenant_id, c.seq, r.found, r.domain, r.id, r.version, r.seq, r.at_us, r.device_id,"
    " r.chain_from, r.data::text, r.attachments::text"
    " FROM unnest(%(tenants)s::int[], %(afters)s::bigint[]) AS t (tenant_id, after_seq)"
    " JOIN tenant_counters AS c ON c.tenant_id = t.tenant_id"
    " LEFT JOIN LATERAL (SELECT *, sum(size_bytes) OVER (ORDER BY seq) - size_bytes AS bytes_before,"
    " row_number() OVER (ORDER BY seq) AS place, count(*) OVER () AS found FROM ("
    "SELECT domain, id, version, seq, at_us, device_id, chain_from, data, attachments,"
    f" {_BYTES} AS size_bytes FROM records"
    " WHERE tenant_id = t.tenant_id AND seq > t.after_seq AND seq > 0"
    " ORDER BY seq LIMIT %(limit)s::int + 1) AS s) AS r"
    " ON r.place <= %(limit)s::int AND (r.place = 1 OR r.bytes_before < %(bytes)s::bigint)"
    " ORDER BY t.tenant_id, r.seq"
)


class PostgresFeed:
    """``engine.feed.ports.FeedStore``, on the primary."""

    def __init__(self, database: Database, sealing: Sealing, piece_rows: int = PIECE_ROWS) -> None:
        self._database = database
        self._sealing = sealing
        self._piece_rows = piece_rows

    async def epoch(self) -> str:
        """Return the database's epoch."""
        rows = await self._database.query("SELECT epoch FROM cluster_state")
        if not rows:
            raise StoreError("cluster_state has no row")
        return str(rows[0][0])

    async def heads(self, tenant_ids: list[int]) -> dict[int, int]:
        """Return the highest seq of each tenant's feed."""
        rows = await self._database.query(
            "SELECT tenant_id, seq FROM tenant_counters WHERE tenant_id = ANY(%(tenants)s::int[])",
            {"tenants": int_array(tenant_ids)},
            tenant_ids,
        )
        return dict(rows)

    async def page(
        self, tenant_id: int, after_seq: int, domains: list[str] | None, limit: int, max_bytes: int
    ) -> Page:
        """Read records after ``after_seq``; see the port."""
        values: dict[str, object] = {
            "tenant": tenant_id,
            "after": after_seq,
            "limit": limit,
            "bytes": max_bytes,
        }
        if domains is not None:
            values |= {"domains": text_array(domains), "rows": self._piece_rows}
        statement = PAGES["page" if domains is None else "page_of_domains"]
        rows = await self._database.query(statement, values, [tenant_id])
        page, read_to = await self._page(tenant_id, rows), rows[0][-1]
        if page.more or read_to is None or read_to == page.high_seq:
            return page
        return Page(page.records, page.high_seq, more=False, read_to=read_to)

    async def page_of_rare_domains(
        self, tenant_id: int, after_seq: int, domains: list[str], limit: int, max_bytes: int
    ) -> Page | None:
        """Read a page of domains that hold few records; see the port."""
        values = {
            "tenant": str(tenant_id),
            "after": str(after_seq),
            "limit": str(limit),
            "bytes": str(max_bytes),
            "domains": text_array(domains),
            "rows": str(self._piece_rows),
        }
        rows = await self._database.query(_FEW, values, [tenant_id])
        if rows[0][-1] > self._piece_rows:
            return None
        return await self._page(tenant_id, rows)

    async def pages_after(self, afters: Mapping[int, int], limit: int, max_bytes: int) -> dict[int, Page]:
        """Read a page of each tenant; see the port."""
        values = {
            "tenants": int_array(afters),
            "afters": int_array(afters.values()),
            "limit": str(limit),
            "bytes": str(max_bytes),
        }
        pages: dict[int, Page] = {}
        rows = await self._database.query(_NEWS, values, afters.keys())
        for tenant_id, own in groupby(rows, key=itemgetter(0)):
            found = list(own)
            rest = [row[1:] for row in found if row[2] is not None]
            records = await self._records(tenant_id, rest)
            more = bool(records) and found[0][2] > len(records)
            pages[tenant_id] = Page(records, found[0][1], more=more)
        return pages

    async def _page(self, tenant_id: int, rows: list[Row]) -> Page:
        high_seq, found = rows[0][:2]
        records = [] if found is None else await self._records(tenant_id, [row[:-1] for row in rows])
        return Page(records, high_seq, more=bool(records) and found > len(records))

    async def _records(self, tenant_id: int, rows: list[Row]) -> list[Record]:
        return await self._sealing.opened(rows, partial(record_of_row, self._sealing, tenant_id))


def record_of_row(sealing: Sealing, tenant_id: int, row: Row) -> Record:
    """Return the record of a row of a page. Raises as ``Sealing.open``."""
    _, _, domain, record_id, version, seq, at_us, device_id, chain_from, data, files = row
    return Record(
        tenant_id,
        domain,
        record_id,
        version,
        seq,
        at_us,
        device_id,
        chain_from,
        sealing.open(RECORD_DATA, tenant_id, domain, record_id, version, data),
        attachments=sealing.open(RECORD_FILES, tenant_id, domain, record_id, version, files),
    )
