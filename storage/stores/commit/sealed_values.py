"""The values of a batch as their columns have them: sealed where their domain is."""

from __future__ import annotations

from engine.model.rows import NO_FILES, Conflict, Event, IdempotencyRecord, Quarantined, Record
from storage.stores.held_changes import encode_changes
from storage.stores.sealed.answers import seal_answers
from storage.stores.sealed.sealing import (
    CONFLICT_CLIENT,
    CONFLICT_DECISION,
    CONFLICT_SERVER,
    EVENT_DATA,
    QUARANTINED,
    RECORD_DATA,
    RECORD_FILES,
    RECORD_LAST_DATA,
    Sealing,
)


def record_data(records: list[Record], sealing: Sealing) -> list[bytes | None]:
    """Return the data of records."""
    if not sealing.on:
        return [record.data for record in records]
    return sealing.seal_all(
        RECORD_DATA, [(one.tenant_id, one.domain, one.id, one.version, one.data) for one in records]
    )


def last_data(records: list[Record], sealing: Sealing) -> list[bytes | None]:
    """Return the last data of tombstones."""
    if not sealing.on:
        return [record.last_data for record in records]
    seal = sealing.seal
    return [
        seal(RECORD_LAST_DATA, one.tenant_id, one.domain, one.id, one.version, one.last_data)
        for one in records
    ]


def record_files(records: list[Record], sealing: Sealing) -> list[bytes | None]:
    """Return the lists of files. An empty one stays plain: an index has tombstones that have files."""
    if not sealing.on:
        return [record.attachments for record in records]
    seal = sealing.seal
    return [
        files
        if (files := one.attachments) == NO_FILES
        else seal(RECORD_FILES, one.tenant_id, one.domain, one.id, one.version, files)
        for one in records
    ]


def event_data(events: list[Event], sealing: Sealing) -> list[bytes | None]:
    """Return the data of events."""
    if not sealing.on:
        return [event.data for event in events]
    return sealing.seal_all(
        EVENT_DATA, [(one.tenant_id, one.domain, one.id, one.sent_at_us, one.data) for one in events]
    )


def side(name: str, conflict: Conflict, sealing: Sealing) -> bytes | None:
    """Return the ``server_data`` or the ``client_data`` of a conflict."""
    data: bytes | None = getattr(conflict, name)
    place = CONFLICT_SERVER if name == "server_data" else CONFLICT_CLIENT
    return sealing.seal(
        place, conflict.tenant_id, conflict.domain, conflict.conflict_id, conflict.server_version, data
    )


def changes(conflict: Conflict, sealing: Sealing) -> str | None:
    """Return the changes that a conflict holds."""
    if conflict.client_changes is None:
        return None
    own = conflict.tenant_id, conflict.domain, conflict.conflict_id
    return encode_changes(conflict.client_changes, sealing, own).decode()


def decision(conflict: Conflict, sealing: Sealing) -> str | None:
    """Return the hash of the decision on a conflict."""
    own = conflict.tenant_id, conflict.domain, conflict.conflict_id, conflict.server_version
    return sealing.seal_text(CONFLICT_DECISION, *own, conflict.settled_sha256)


def stored_item(row: Quarantined, sealing: Sealing) -> str | None:
    """Return a rejected item. One of an unknown domain may hold anything, so it is sealed."""
    item = row.item.decode()
    return sealing.seal_text(QUARANTINED, row.tenant_id, row.domain, row.quarantine_id, 0, item)


def answers(keys: list[IdempotencyRecord], sealing: Sealing) -> tuple[list[str], list[bytes | None]]:
    """Return the hashes of the requests and the results; a sealed one has its hash with its results."""
    if not sealing.on:
        return [key.request_sha256 for key in keys], [key.results for key in keys]
    return seal_answers(sealing, keys)
