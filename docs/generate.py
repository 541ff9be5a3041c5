"""Write the pages that are made of tables in the code: ``python -m docs.generate``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from engine.wire.errors import ERRORS, ErrorKind

DOCS: Final = Path(__file__).parent

_ERRORS_HEAD: Final = """\
# Errors

Made of the table in `engine/wire/errors.py` by `python -m docs.generate`; to change this page, change the
table.

An error looks as the [wire contract](protocol.md#errors) says: a code that stays, a sentence for a person,
and whether the very same message may succeed later.
"""


def errors_page() -> str:
    """Make docs/errors.md."""
    whole = [kind for kind in ERRORS.values() if kind.http is not None]
    items = [kind for kind in ERRORS.values() if kind.http is None]
    lines = [
        _ERRORS_HEAD,
        "## Of a message as a whole",
        "",
        "| code | HTTP | retryable | cause | remedy |",
        "|---|---|---|---|---|",
        *(_row(kind, str(kind.http), "yes" if kind.retryable else "no") for kind in whole),
        "",
        "## Of one item",
        "",
        "They stand in the `error` of a rejected item, and the other items of the message go on. An item",
        "over `record_bytes` is rejected with `too_large`, too. No retry of the same item helps.",
        "",
        "| code | cause | remedy |",
        "|---|---|---|",
        *(_row(kind) for kind in items),
    ]
    return "\n".join(lines) + "\n"


def _row(kind: ErrorKind, *columns: str) -> str:
    return " | ".join(("| `" + kind.code + "`", *columns, kind.cause, kind.remedy)) + " |"


def pages() -> Iterator[tuple[Path, str]]:
    """Give each generated page with its text."""
    yield DOCS / "errors.md", errors_page()


if __name__ == "__main__":
    for path, text in pages():
        path.write_text(text, "utf-8")
