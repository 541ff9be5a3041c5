"""The data dictionary has every table and column of the schema, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from storage.embedded.servers import Services
from tests.harness.services import named, rows

_DOCS = Path(__file__).parents[2] / "docs"
_PAGE = (_DOCS / "data-dictionary.md").read_text("utf-8")
_STATES = (_DOCS / "upload-states.md").read_text("utf-8")
_COLUMNS = """
    SELECT c.relname::text, a.attname::text FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    AND c.relname NOT LIKE '%yoyo%' ORDER BY c.relname, a.attnum
"""


def test_data_dictionary_explains_exactly_the_columns_in_order(services: Services, template: str) -> None:
    explained = {}
    for section in re.split(r"^### ", _PAGE, flags=re.MULTILINE)[1:]:
        table, text = section.split("\n", 1)
        cells = re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.MULTILINE)
        explained[table] = [name for name, meaning in cells if meaning.strip()]
    schema: dict[str, list[str]] = {}
    for table, column in rows(named(services.dsn, template), _COLUMNS):
        schema.setdefault(str(table), []).append(str(column))
    assert explained == schema


def test_data_dictionary_explains_every_upload_state(services: Services, template: str) -> None:
    ((check,),) = rows(
        named(services.dsn, template),
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'upload_session_state_check'",
    )
    assert "| `state` | one of ten, see [states of an upload](upload-states.md) |" in _PAGE
    explained = re.findall(
        r"^\| `\w+` \| `(\w+)` \|", _STATES[: _STATES.index("- **has bytes**")], re.MULTILINE
    )
    assert sorted(re.findall(r"'(\w+)'::text", str(check))) == sorted(explained)
