"""Files with the same content and name: SQL compares plain ones; sealed ones are compared opened."""

from __future__ import annotations

from storage.postgres.plain_bytes import TEXT_MARK_SQL
from storage.stores.sealed.sealing import FILE_NAME, FILE_SHA256, Sealing


def may_be_same(one: str, other: str) -> str:
    """Return the SQL condition that two uploads of a record are the same file, or that one of them is sealed.

    Of sealed files every file of the record is read, 100 at most by default, and compared when it was opened.

    Args:
        one: The name of an upload in the statement.
        other: That of the other.
    """
    return (
        f"({one}.sha256 = {other}.sha256 AND {one}.file_name = {other}.file_name"
        f" OR left({one}.sha256, 1) = {TEXT_MARK_SQL} OR left({other}.sha256, 1) = {TEXT_MARK_SQL})"
    )


def is_same_file(
    sealing: Sealing, tenant_id: int, upload_id: str, other_id: str, domain: str, own: str, other: str
) -> bool:
    """Return whether two uploads of a record have the same content and name. Raises as ``Sealing.open``.

    Args:
        sealing: Opens both.
        tenant_id: Their tenant.
        upload_id: The id of one.
        other_id: The id of the other.
        domain: The domain of their record.
        own: The stored hash of one, a space, and its stored name.
        other: Those of the other.
    """

    def opened(file_id: str, stored: str) -> list[str | None]:
        sha256, _, name = stored.partition(" ")
        of_file = tenant_id, domain, file_id, 0
        return [
            sealing.open_text(FILE_SHA256, *of_file, sha256),
            sealing.open_text(FILE_NAME, *of_file, name),
        ]

    return opened(upload_id, own) == opened(other_id, other)
