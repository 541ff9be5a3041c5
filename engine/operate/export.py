"""Records and events on their way out of the system: rows, and how they are written. No I/O here."""

from __future__ import annotations

import csv
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Literal, Protocol

import msgspec

from engine.wire.timestamps import to_text

Format = Literal["jsonl", "csv"]

#: In front of the columns of CSV that a record's or an event's data give.
DATA_PREFIX: Final = "data."
#: A spreadsheet takes a cell that begins so for a formula, the wide characters in some languages. Texts with
#: apostrophes before count too, so that every text can be read back.
_FORMULA: Final = re.compile("'*[=+\\-@\t\r\n\0\uff1d\uff0b\uff0d\uff20]")


class Row(msgspec.Struct, frozen=True):
    """One record or event. ``fixed`` are its columns but data, by name; ``data`` is None of a tombstone.

    Texts of JSON are ``msgspec.Raw``, so that numbers stay as the device wrote them.
    """

    fixed: dict[str, Any]
    data: msgspec.Raw | None


class ExportStore(Protocol):
    """Reads what a tenant has in a domain."""

    def pages(
        self,
        tenant: str,
        domain: str,
        from_us: int | None,
        to_us: int | None,
        unreadable: Callable[[str], None],
    ) -> AsyncIterator[list[Row]]:
        """Give rows in the order of their keys, each page read in a transaction of its own.

        Args:
            tenant: The tenant's name.
            domain: The domain, of records or events.
            from_us: Leave out what is older. Records go by the time of their last change, events by the time
                that their device sent.
            to_us: Leave out what is not older.
            unreadable: Is told the id of a row with a sealed value that cannot be opened, which is left out.

        Raises:
            RefusedError: There is no such tenant or domain.
            StoreError: The database is away, or refused a statement.
        """


def instant(text: Any) -> str | None:
    """Write microseconds since 1970 as devices see them; None stays."""
    return None if text is None else to_text(text)


def compact(text: bytes) -> msgspec.Raw:
    """Return a text of JSON on one line: a device may have written it on several."""
    return msgspec.Raw(msgspec.json.format(text, indent=-1))


def json_line(row: Row) -> bytes:
    """Write a row as one line of JSON."""
    return msgspec.json.encode({**row.fixed, "data": row.data}) + b"\n"


class CsvForm:
    """Columns of CSV: the fixed ones, then one for each field that any row's data has, in the order found."""

    def __init__(self) -> None:
        self._fixed: dict[str, None] = {}
        self._fields: dict[str, None] = {}

    def note(self, line: bytes) -> None:
        """Take in which columns a line of ``json_line`` needs."""
        fixed, data = _parts(line)
        self._fixed.update(dict.fromkeys(fixed))
        self._fields.update(dict.fromkeys(data))

    def heading(self) -> str:
        """Write the first line."""
        return _line([*self._fixed, *(DATA_PREFIX + field for field in self._fields)])

    def write(self, lines: Iterable[bytes]) -> Iterator[str]:
        """Write lines of ``json_line`` that were noted."""
        for line in lines:
            fixed, data = _parts(line)
            cells = [fixed.get(name) for name in self._fixed] + [data.get(name) for name in self._fields]
            yield _line([_cell(cell) for cell in cells])


def _parts(line: bytes) -> tuple[dict[str, msgspec.Raw], dict[str, msgspec.Raw]]:
    fixed = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    data = msgspec.json.decode(fixed.pop("data"), type=dict[str, msgspec.Raw] | None)
    return fixed, data or {}


def _cell(value: msgspec.Raw | None) -> str:
    """Write a value: a text after an apostrophe if it could be a formula, nothing for null, else JSON."""
    text = b"" if value is None else bytes(value)
    if text == b"null":
        return ""
    if not text.startswith(b'"'):
        return text.decode()
    decoded = msgspec.json.decode(text, type=str)
    return f"'{decoded}" if _FORMULA.match(decoded) else decoded


class _Echo:
    """A file for csv, which hands on what this returns."""

    @staticmethod
    def write(text: str) -> str:
        return text


def _line(cells: Sequence[str]) -> str:
    return str(csv.writer(_Echo()).writerow(cells))
