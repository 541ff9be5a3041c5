"""The files of records on a device: as the change of the highest ``seq`` showed them."""

from __future__ import annotations

import sqlite3
from typing import Final

import msgspec

from bench.client.messages import Change
from engine.wire.messages import Attachment

_decode = msgspec.json.Decoder(list[Attachment]).decode

#: Also with a version that is held already, since a file makes none; but never what is older.
_TAKE: Final = (
    "INSERT INTO attachments SELECT :domain, :record, :seq, :files, value FROM meta WHERE name = 'generation'"
    " ON CONFLICT DO UPDATE SET seq = excluded.seq, files = excluded.files, generation = excluded.generation"
    " WHERE excluded.seq > seq OR excluded.generation > generation"
)
#: Most records never have any, and need no row.
_EMPTY: Final = (
    "UPDATE attachments SET seq = :seq, files = :files, generation = value FROM meta"
    " WHERE meta.name = 'generation' AND domain = :domain AND record_id = :record"
    " AND (:seq > seq OR value > generation)"
)


def take(connection: sqlite3.Connection, change: Change) -> None:
    """Store the files that a change shows, none if it shows none."""
    files = bytes(change.attachments)
    connection.execute(
        _TAKE if files else _EMPTY,
        {"domain": change.domain, "record": change.id, "seq": change.seq, "files": files or b"[]"},
    )


def shown(connection: sqlite3.Connection, domain: str, record_id: str) -> list[Attachment]:
    """Return the files of a record."""
    found = connection.execute(
        "SELECT files FROM attachments WHERE domain = ? AND record_id = ?", (domain, record_id)
    ).fetchone()
    return [] if found is None else _decode(found[0])
