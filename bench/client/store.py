"""What a device keeps on disk: its edits until they are answered, the server's records, its cursor.

SQLite in WAL mode. Each method is one transaction, and between any two of them the process may be killed:
what was sent and not answered is sent again under its key, what was heard and not stored is heard again.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from bench.client import messages, telemetry
from bench.client.edits import (
    Held,
    Message,
    Record,
    Rejected,
    Settled,
    after,
    decode_fields,
    decode_item,
    outcome,
)
from bench.client.messages import Change, OpenConflict, Result, payload
from engine.model.merge import Fields
from engine.wire.messages import Attachment, Op
from engine.wire.timestamps import to_text

_SCHEMA: Final = (Path(__file__).parent / "schema.sql").read_text("utf-8")
_KEEP_VERSION: Final = (
    "INSERT INTO replica SELECT ?, ?, ?, ?, value FROM meta WHERE name = 'generation'"
    " ON CONFLICT DO UPDATE SET version = excluded.version, data = excluded.data,"
    " generation = excluded.generation WHERE excluded.version > version OR excluded.generation > generation"
)
#: Also with a version that is held already, since a file makes none; but never what is older.
_KEEP_FILES: Final = (
    "INSERT INTO attachments SELECT :domain, :record, :seq, :files, value FROM meta WHERE name = 'generation'"
    " ON CONFLICT DO UPDATE SET seq = excluded.seq, files = excluded.files, generation = excluded.generation"
    " WHERE excluded.seq > seq OR excluded.generation > generation"
)
#: Most records never have any, and need no row.
_EMPTY_FILES: Final = (
    "UPDATE attachments SET seq = :seq, files = :files, generation = value FROM meta"
    " WHERE meta.name = 'generation' AND domain = :domain AND record_id = :record"
    " AND (:seq > seq OR value > generation)"
)
_KEEP_HELD: Final = "INSERT OR REPLACE INTO held VALUES (?, ?, ?, ?, ?, ?, ?)"
_decode_files = msgspec.json.Decoder(list[Attachment]).decode


class StoreError(Exception):
    """The file cannot be used as it is asked to; one sentence says why."""


class Store:
    """One device's file. ``domains`` is the set of domains that it follows, None all of them.

    With NORMAL ``durability`` a disk that loses power may forget the latest transactions; a killed process
    loses none either way. Raises StoreError for the file of another device.
    """

    def __init__(
        self,
        path: Path,
        device_id: str,
        domains: Sequence[str] | None = None,
        durability: Literal["FULL", "NORMAL"] = "FULL",
    ) -> None:
        self.device_id = device_id
        self.domains = None if domains is None else sorted(domains)
        self._scope = json.dumps(self.domains)
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute(f"PRAGMA synchronous = {durability}")
        self._connection.executescript(_SCHEMA)
        with self._transaction() as run:
            run("INSERT OR IGNORE INTO meta VALUES ('device_id', ?), ('generation', 0)", (device_id,))
            run("INSERT OR IGNORE INTO cursors (scope) VALUES (?)", (self._scope,))
        owner = self._one("SELECT value FROM meta WHERE name = 'device_id'")[0]
        if owner != device_id:
            self.close()
            raise StoreError(f"{path} belongs to the device {owner}: give {device_id} a file of its own")

    def close(self) -> None:
        """Let the file go."""
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection.execute
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _one(self, statement: str, values: tuple[object, ...] = ()) -> Any:
        return self._connection.execute(statement, values).fetchone()

    # -- edits -------------------------------------------------------------------------------

    def edit(
        self,
        domain: str,
        record_id: str,
        op: Op,
        data: Fields | None,
        clock_us: int,
        changed: Sequence[str] | None = None,
        *,
        known: bool = True,
    ) -> int:
        """Store an edit before it is shown. Returns its number. Raises ValueError for unusable data.

        Its base is the version that the device holds, none if the record is not ``known``; an edit on top of
        others that wait has theirs, since it was made on their outcome, whatever the server has by then. No
        edit of a record is older than the one before it, even if the device's clock was set back in between.
        """
        with self._transaction() as run:
            waiting = run(
                "SELECT base, max(at_us) OVER () FROM outbox WHERE domain = ? AND record_id = ?"
                " ORDER BY edit LIMIT 1",
                (domain, record_id),
            ).fetchone()
            if waiting is None:
                base, at_us = self._held(domain, record_id)[0], clock_us
            else:
                base, at_us = waiting[0], max(clock_us, waiting[1])
            if op == "append" or not known:
                base = None
            more: dict[str, Any] = {} if op == "delete" else {"data": data}
            if changed is not None:
                more["changed"] = list(changed)
            item = messages.item(domain, record_id, op, base, to_text(at_us), more)
            number = run(
                "INSERT INTO outbox (domain, record_id, base, at_us, item) VALUES (?, ?, ?, ?, ?)",
                (domain, record_id, base, at_us, item),
            ).lastrowid
            telemetry.count(run, clock_us, "edits")
        assert number is not None
        return number

    @property
    def waiting(self) -> int:
        """How many edits have no answer."""
        return int(self._one("SELECT count(*) FROM outbox")[0])

    # -- what the device shows ---------------------------------------------------------------

    def record(self, domain: str, record_id: str) -> Record:
        """Show a record: the server's, with the edits that wait on top of it."""
        version, data = self._held(domain, record_id)
        fields = None if data is None else decode_fields(data)
        waiting = self._connection.execute(
            "SELECT item FROM outbox WHERE domain = ? AND record_id = ? ORDER BY edit", (domain, record_id)
        ).fetchall()
        for (text,) in waiting:
            fields = after(decode_item(text), fields)
        return Record(version, fields, len(waiting))

    def attachments(self, domain: str, record_id: str) -> list[Attachment]:
        """Show the files of a record, as last heard."""
        found = self._one(
            "SELECT files FROM attachments WHERE domain = ? AND record_id = ?", (domain, record_id)
        )
        return [] if found is None else _decode_files(found[0])

    @property
    def count(self) -> int:
        """How many records the server has that are not deleted, as last heard."""
        return int(self._one("SELECT count(*) FROM replica WHERE data IS NOT NULL")[0])

    def replica(self) -> list[tuple[str, str, int, bytes | None]]:
        """List the server's records as last heard, tombstones too: domain, id, version, data."""
        return self._connection.execute(
            "SELECT domain, record_id, version, data FROM replica ORDER BY domain, record_id"
        ).fetchall()

    def _held(self, domain: str, record_id: str) -> tuple[int | None, bytes | None]:
        found: tuple[int, bytes | None] | None = self._one(
            "SELECT version, data FROM replica WHERE domain = ? AND record_id = ?", (domain, record_id)
        )
        return found or (None, None)

    # -- push --------------------------------------------------------------------------------

    def message(self, max_items: int, max_bytes: int, frame_bytes: int, behind: int = 0) -> Message | None:
        """Return the message under way, or make the next one under a new key; None if nothing waits.

        Messages under way up to the edit ``behind`` are passed over, for who sends several at once.
        At most ``max_items`` and ``max_bytes``, though one item always fits. An item that no frame takes is
        refused here: it would close every connection that it is sent on.
        """
        under_way = self._under_way(behind)
        if under_way is not None:
            return under_way
        with self._transaction() as run:
            size_bytes, last = 0, 0
            oldest = run(
                "SELECT edit, item FROM outbox WHERE key IS NULL ORDER BY edit LIMIT ?", (max_items,)
            ).fetchall()
            for edit, item in oldest:
                if len(item) + messages.ENVELOPE_BYTES > frame_bytes:
                    self._reject(edit, item, "too_large", f"larger than a frame of {frame_bytes} bytes")
                    continue
                size_bytes += len(item) + 1
                if last and size_bytes > max_bytes:
                    break
                last = edit
            if last:
                key = uuid.uuid4().hex
                run("UPDATE outbox SET key = ? WHERE key IS NULL AND edit <= ?", (key, last))
                before = "INSERT INTO message SELECT ?, scope, cursor FROM cursors WHERE scope = ?"
                run(before, (key, self._scope))
        if oldest and not last:
            return self.message(max_items, max_bytes, frame_bytes, behind)
        return self._under_way(behind)

    def _under_way(self, behind: int) -> Message | None:
        found = self._connection.execute(
            "SELECT key, edit, item FROM outbox WHERE key = (SELECT key FROM outbox JOIN message USING (key)"
            " WHERE edit > ? ORDER BY edit LIMIT 1) ORDER BY edit",
            (behind,),
        ).fetchall()
        return Message(found[0][0], found[-1][1], [item for *_, item in found]) if found else None

    def settle(
        self, key: str, results: Sequence[Result], clock_us: int = 0, took_us: int = 0
    ) -> tuple[list[Settled], bool]:
        """Store the answer to a message and delete the message, in one transaction.

        How long it ``took_us`` is counted in the hour of ``clock_us``, if that is given.
        Gives each edit with its result, and whether the cursor was set back to before the message, because
        an outcome came without its data: it is to be pulled from there.
        """
        with self._transaction() as run:
            sent = run("SELECT edit, item FROM outbox WHERE key = ? ORDER BY edit", (key,)).fetchall()
            if len(sent) != len(results):
                raise StoreError(f"{len(sent)} items were answered with {len(results)} results")
            settled = [Settled(row[0], row[1], result) for row, result in zip(sent, results, strict=True)]
            told = [self._take(one) for one in settled]
            if not all(told):
                run(
                    "UPDATE cursors SET cursor = (SELECT iif(sweeping, NULL, m.cursor) FROM message AS m"
                    " WHERE m.scope = cursors.scope) WHERE scope = ?",
                    (self._scope,),
                )
            run("DELETE FROM message WHERE key = ?", (key,))
            run("DELETE FROM outbox WHERE key = ?", (key,))
            if clock_us:
                telemetry.count(run, clock_us, "sync_round_trip", took_us)
        return settled, not all(told)

    def telemetry(self, clock_us: int) -> telemetry.Told | None:
        """Return the oldest hour of telemetry that is over and not stored, None if there is none."""
        with self._transaction() as run:
            return telemetry.next_hour(run, clock_us)

    def forget_telemetry(self, key: str) -> None:
        """Delete an hour of telemetry that the server has stored, or never takes."""
        with self._transaction() as run:
            run("DELETE FROM telemetry WHERE key = ?", (key,))

    def _take(self, settled: Settled) -> bool:
        """Store one result. Returns False if it does not tell the outcome."""
        item, result = decode_item(settled.item), settled.result
        if result.status == "rejected":
            error = result.error
            assert error is not None
            self._reject(settled.edit, settled.item, error.code, error.message)
            return True
        version = result.version
        if item.op == "append" or version is None:
            return True
        held = self._one(
            "SELECT version, data FROM replica, meta WHERE domain = ? AND record_id = ?"
            " AND name = 'generation' AND generation = value",
            (item.domain, item.id),
        )
        if result.status in ("applied", "unchanged"):
            data = outcome(item, version if result.status == "applied" else version + 1, held)
        else:
            data = result.data if bytes(result.data) else None
        if result.status == "conflict" and result.conflict_id is not None:
            server = None if data is None else payload(data)
            waits = self._one("SELECT client, changes FROM held WHERE conflict_id = ?", (result.conflict_id,))
            client, changes = waits or (server, 0)
            wanted = after(item, None if client is None else decode_fields(client))
            text = None if wanted is None else msgspec.json.encode(wanted)
            held_now = Held(result.conflict_id, item.domain, item.id, version, server, text, changes + 1)
            self._connection.execute(_KEEP_HELD, held_now)
        if data is None:
            return held is not None and held[0] >= version
        self._connection.execute(_KEEP_VERSION, (item.domain, item.id, version, payload(data)))
        return True

    def refuse(self, key: str, code: str, sentence: str) -> None:
        """Take back a message that can never succeed as it is; its key was not used.

        A lone item is what is wrong with it and is put aside. The items of a larger message go out again in
        messages of their own choosing (``message`` with a lower ``max_items``).
        """
        with self._transaction() as run:
            sent = run("SELECT edit, item FROM outbox WHERE key = ?", (key,)).fetchall()
            if len(sent) == 1:
                edit, item = sent[0]
                self._reject(edit, item, code, sentence)
            run("UPDATE outbox SET key = NULL WHERE key = ?", (key,))
            run("DELETE FROM message WHERE key = ?", (key,))

    def _reject(self, edit: int, item: bytes, code: str, sentence: str) -> None:
        self._connection.execute("INSERT INTO rejected VALUES (?, ?, ?, ?)", (edit, item, code, sentence))
        self._connection.execute("DELETE FROM outbox WHERE edit = ?", (edit,))

    @property
    def rejected(self) -> list[Rejected]:
        """The edits that the server refused, oldest first."""
        found = self._connection.execute("SELECT * FROM rejected ORDER BY edit")
        return [Rejected(*row) for row in found]

    # -- receive -----------------------------------------------------------------------------

    @property
    def cursor(self) -> str | None:
        """Where the device stands in the feed; None at the beginning."""
        cursor: str | None = self._one("SELECT cursor FROM cursors WHERE scope = ?", (self._scope,))[0]
        return cursor

    def page(self, changes: Sequence[Change], cursor: str, *, last: bool) -> None:
        """Apply a page and keep its cursor, in one transaction; ``last`` if nothing is behind it now."""
        with self._transaction() as run:
            for change in changes:
                run(_KEEP_VERSION, (change.domain, change.id, change.version, payload(change.data)))
                files, where = bytes(change.attachments), {"domain": change.domain, "record": change.id}
                shown = {**where, "seq": change.seq, "files": files or b"[]"}
                run(_KEEP_FILES if files else _EMPTY_FILES, shown)
            run("UPDATE cursors SET cursor = ? WHERE scope = ?", (cursor, self._scope))
            if last and self._one("SELECT sweeping FROM cursors WHERE scope = ?", (self._scope,))[0]:
                self._sweep()

    def _sweep(self) -> None:
        """Drop what a pull from the beginning did not hold."""
        domains = "" if self.domains is None else " AND domain IN (SELECT value FROM json_each(:scope))"
        old = " WHERE generation < (SELECT value FROM meta WHERE name = 'generation')" + domains
        for table in ("replica", "attachments"):
            self._connection.execute(f"DELETE FROM {table}{old}", {"scope": self._scope})
        self._connection.execute("UPDATE cursors SET sweeping = 0 WHERE scope = ?", (self._scope,))

    def start_over(self) -> None:
        """Drop the cursor: the feed is read from the beginning, and records that it lacks are deleted.

        Until then everything is shown as it was.
        """
        with self._transaction() as run:
            run("UPDATE meta SET value = value + 1 WHERE name = 'generation'")
            run("UPDATE cursors SET cursor = NULL, sweeping = 1 WHERE scope = ?", (self._scope,))
            run("UPDATE message SET cursor = NULL")

    # -- conflicts ---------------------------------------------------------------------------

    @property
    def conflicts(self) -> list[Held]:
        """Own edits that wait for a person, as last heard."""
        found = self._connection.execute("SELECT * FROM held ORDER BY conflict_id")
        return [Held(*row) for row in found]

    def remember(self, found: Sequence[OpenConflict], before: Sequence[Held]) -> None:
        """Store the server's list of open conflicts.

        A conflict that was known ``before`` the list was asked for and is not in it is settled.
        """
        with self._transaction() as run:
            for held in before:
                run("DELETE FROM held WHERE conflict_id = ?", (held.conflict_id,))
            for one in found:
                server, client = payload(one.server.data), payload(one.client.data)
                where = one.conflict_id, one.domain, one.record_id
                run(_KEEP_HELD, (*where, one.server.version, server, client, one.client.changes))

    def drop(self, conflict_id: str) -> None:
        """Forget a conflict that is settled; the feed has the outcome."""
        with self._transaction() as run:
            run("DELETE FROM held WHERE conflict_id = ?", (conflict_id,))
