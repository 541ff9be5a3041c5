"""The page of migrations, made from the heads of their files and from the statements of their ways back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

MIGRATIONS: Final = Path(__file__).parent.parent / "storage" / "migrations"
_BACK: Final = ".rollback.sql"

_HEAD: Final = """\
# Migrations

`python -m docs.generate` makes this page from `storage/migrations/`. To change the page, change the head of a
file there.

All migrations in their order. [Upgrades](upgrades.md#migrations) says how they are applied and what they wait
for, [rollback of the database](upgrades.md#rollback-of-the-database) how they are taken back. The way back of
each is a file of its own (`.rollback.sql`); the last column has the data that go with it. Numbers that are
missing were not used.

| migration | what it brings | data that its way back deletes |
|---|---|---|
"""
_COMMENT: Final = re.compile(r"--.*")
_LINK: Final = re.compile(r"\s*\(docs/[^)]*\)")
_CREATE: Final = re.compile(r"^CREATE TABLE (\w+)", re.MULTILINE)
_TABLE: Final = re.compile(r"\bDROP TABLE (?:IF EXISTS )?([\w, ]+)", re.IGNORECASE)
_ALTER: Final = re.compile(r"\bALTER TABLE (?:ONLY )?(\w+)(.*)", re.IGNORECASE | re.DOTALL)
_COLUMN: Final = re.compile(r"\bDROP COLUMN (?:IF EXISTS )?(\w+)", re.IGNORECASE)
_DELETE: Final = re.compile(r"\bDELETE FROM (\w+)", re.IGNORECASE)


def migrations_page() -> str:
    """Make docs/migrations.md."""
    files = sorted(path for path in MIGRATIONS.glob("*.sql") if not path.name.endswith(_BACK))
    return _HEAD + "".join(_row(path) for path in files)


def _row(path: Path) -> str:
    back = path.with_name(path.name.removesuffix(".sql") + _BACK)
    lost = deleted(back.read_text("utf-8"))
    return f"| `{path.stem}` | {brings(path.read_text('utf-8'))} | {'; '.join(lost) or 'none'} |\n"


def brings(text: str) -> str:
    """Return the first sentence of a migration's head, or else the tables that it makes."""
    head = []
    for line in text.splitlines():
        if not line.startswith("--"):
            break
        head.append(line.removeprefix("--").strip())
    if not head:
        return "The table " + ", ".join(f"`{name}`" for name in _CREATE.findall(text))
    return _LINK.sub("", " ".join(head)).partition(". ")[0].rstrip(".").replace("|", "\\|")


def deleted(text: str) -> list[str]:
    """Return the tables and columns whose data a way back deletes."""
    found: list[str] = []
    columns: dict[str, list[str]] = {}
    for statement in _COMMENT.sub("", text).split(";"):
        for names in _TABLE.findall(statement):
            found += [f"`{name.strip()}`" for name in names.split(",")]
        found += [f"rows of `{table}`" for table in _DELETE.findall(statement)]
        altered = _ALTER.search(statement)
        if altered is not None:
            columns.setdefault(altered[1], []).extend(_COLUMN.findall(altered[2]))
    found += [
        f"of `{table}`: {', '.join(f'`{one}`' for one in lost)}" for table, lost in columns.items() if lost
    ]
    return found
