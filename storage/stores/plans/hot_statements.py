"""The statements of serving that read or write rows of tenants, taken from the modules of the stores.

All that connections prepare are among them, so that a new one is by itself, and the pages of the feed.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final, NamedTuple

import msgspec

from storage.postgres.connection import Statement
from storage.postgres.driver import Values
from storage.postgres.roles.tables import GROWING_TABLES
from storage.stores import devices, feed, upload_reads, uploads
from storage.stores.commit import reads, writes
from storage.stores.commit.reads import ReadKinds, reading
from storage.stores.monitoring import minutes, telemetry, voice

_MODULES: Final = (reads, writes, feed, uploads, upload_reads, devices, minutes, telemetry, voice)
#: The kinds of row that a batch reads, each by itself. Events ahead are read with other events alone.
_KINDS: Final = [name for name in ReadKinds.__struct_fields__ if name not in ("sealing", "usage_above")]
_NOTHING: Final[dict[str, Any]] = {**dict.fromkeys(_KINDS, False), "sealing": True, "usage_above": ()}
#: The name under which a statement is prepared here: a pooler's connection may have it under its own.
PREPARED: Final = "tidemark_verify"
#: A plan is for any values. Only these decide which partitions are looked at: all of them.
_ALL_DAYS: Final = {"events_from": str(-(1 << 63)), "events_to": str((1 << 63) - 1)}


class HotStatement(NamedTuple):
    """A statement of serving.

    Attributes:
        name: The module, and the name that the statement has there.
        preparation: What prepares it; empty if serving does not.
        call: The statement, or the call of the prepared one.
        values: The values of the call.
    """

    name: str
    preparation: str
    call: str
    values: Values


def hot_statements(lifetime_h: float) -> Iterator[HotStatement]:
    """Yield the statements of serving.

    Args:
        lifetime_h: How long kept answers are found, which is part of a statement.
    """
    for module in _MODULES:
        for name, value in vars(module).items():
            if isinstance(value, Statement) and any(table in value.text for table in GROWING_TABLES):
                yield _prepared(f"{_short(module)}.{name.strip('_').lower()}", value)
    for kind in _KINDS:
        also = {"events": True} if kind == "events_ahead" else {}
        kinds = msgspec.convert({**_NOTHING, kind: True, **also}, ReadKinds)
        yield _prepared(f"commit.reads.{kind}", reading(kinds, lifetime_h, None))
    for name, text in feed.PAGES.items():
        yield HotStatement(f"feed.{name}", "", text, feed.ANY_PAGE)


def _prepared(name: str, statement: Statement) -> HotStatement:
    body = statement.preparation.replace("%%", "%").replace(statement.name, PREPARED)
    call = statement.call.replace(statement.name, PREPARED)
    return HotStatement(name, body, call, {one: _ALL_DAYS.get(one) for one in statement.names})


def _short(module: ModuleType) -> str:
    return module.__name__.removeprefix("storage.stores.")
