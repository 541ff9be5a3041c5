"""The columns of sealed values, for the job that seals again what is stored.

A place that the stores seal is a column here, else its values stay as they are: a test compares both.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from storage.stores.sealed.sealing import (
    ANSWER,
    ANY_DOMAIN,
    CONFLICT_CHANGE,
    CONFLICT_CLIENT,
    CONFLICT_DECISION,
    CONFLICT_SERVER,
    EVENT_DATA,
    FILE_METADATA,
    FILE_NAME,
    FILE_SHA256,
    FILE_WANTED_SHA256,
    QUARANTINED,
    RECORD_DATA,
    RECORD_FILES,
    RECORD_LAST_DATA,
    VOICE_RESULT,
)

#: How a column holds a sealed value:
#: - ``json``: as a string, where a plain one is an object or a list;
#: - ``files``: as ``json``, but an empty list stays plain;
#: - ``text``: behind a mark;
#: - ``changes``: a list of objects, whose ``data`` are as ``json``;
#: - ``answer``: as ``json``, with the hash of the request, which has a column of its own beside a plain one;
#: - ``voice``: as ``json``, with the ids of the verification and the person, which have columns beside it.
Form = Literal["json", "files", "text", "changes", "answer", "voice"]


class KeyColumn(NamedTuple):
    """A column of a primary key, and its type."""

    name: str
    kind: str


class SealedColumn(NamedTuple):
    """One column. ``place`` names it in the associated data."""

    name: str
    place: str
    form: Form


class SealedTable(NamedTuple):
    """A table with sealed values, and what they are bound to.

    Attributes:
        name: The table.
        key: Its primary key without ``tenant_id``, in its order, by which the job walks.
        columns: The columns of sealed values.
        domain: SQL of the row's domain, which may be null.
        value_id: SQL of the id in the associated data.
        version: SQL of the version in the associated data.
        more: Columns that change with the sealed one.
    """

    name: str
    key: tuple[KeyColumn, ...]
    columns: tuple[SealedColumn, ...]
    domain: str
    value_id: str
    version: str = "0"
    more: tuple[str, ...] = ()


_TEXT: Final = "text"
_EVENTS: Final = SealedTable(
    "events",
    (KeyColumn("domain", _TEXT), KeyColumn("id", _TEXT), KeyColumn("sent_at_us", "bigint")),
    (SealedColumn("data", EVENT_DATA, "json"),),
    "domain",
    "id",
    "sent_at_us",
)
SEALED_TABLES: Final[tuple[SealedTable, ...]] = (
    SealedTable(
        "records",
        (KeyColumn("domain", _TEXT), KeyColumn("id", _TEXT)),
        (
            SealedColumn("data", RECORD_DATA, "json"),
            SealedColumn("last_data", RECORD_LAST_DATA, "json"),
            SealedColumn("attachments", RECORD_FILES, "files"),
        ),
        "domain",
        "id",
        "version",
    ),
    # It may be detached for a while, and is no part of events then. Its rows move to events, so it is first:
    # after events, a pass would miss those that moved behind its back.
    _EVENTS._replace(name="events_later"),
    _EVENTS,
    SealedTable(
        "conflict_resolution_log",
        (KeyColumn("conflict_id", _TEXT),),
        (
            SealedColumn("server_data", CONFLICT_SERVER, "json"),
            SealedColumn("client_data", CONFLICT_CLIENT, "json"),
            SealedColumn("client_changes", CONFLICT_CHANGE, "changes"),
            SealedColumn("settled_sha256", CONFLICT_DECISION, "text"),
        ),
        "domain",
        "conflict_id",
        "server_version",
    ),
    SealedTable(
        "quarantine",
        (KeyColumn("quarantine_id", _TEXT),),
        (SealedColumn("item", QUARANTINED, "text"),),
        "domain",
        "quarantine_id",
    ),
    SealedTable(
        "upload_session",
        (KeyColumn("upload_id", "uuid"),),
        (
            SealedColumn("file_name", FILE_NAME, "text"),
            SealedColumn("metadata", FILE_METADATA, "text"),
            SealedColumn("wanted_sha256", FILE_WANTED_SHA256, "text"),
            SealedColumn("sha256", FILE_SHA256, "text"),
        ),
        "domain",
        "replace(upload_id::text, '-', '')",
    ),
    SealedTable(
        "voice_verification_log",
        (KeyColumn("verification_id", _TEXT),),
        (SealedColumn("result", VOICE_RESULT, "voice"),),
        "'voice'",
        "verification_id",
        more=("verification_id", "user_id"),
    ),
    SealedTable(
        "sync_idempotency_record",
        (KeyColumn("key_hash", "uuid"), KeyColumn("created_at", "timestamptz")),
        (SealedColumn("results", ANSWER, "answer"),),
        f"'{ANY_DOMAIN}'",
        "replace(key_hash::text, '-', '')",
        more=("request_sha256",),
    ),
)
