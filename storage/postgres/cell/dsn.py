"""The schema of a cell travels in the DSN, so that no function, command or child process can lose it.

It stands there as an option of a name of ours, which is taken out before anything is sent: a pooler refuses
options, and ``search_path`` would come too late for statements that are prepared.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

_OPTION: Final = re.compile(r"(?:^|\s)-c\s*tidemark\.schema=(\S+)")
#: A cell names its tables in full, so a search_path beside it has no meaning.
_SEARCH_PATH: Final = re.compile(r"(?:^|\s)-c\s*search_path=\S+")


def with_schema(dsn: str, schema: str) -> str:
    """Return a DSN that carries a schema. An empty schema, or an empty or broken DSN, changes nothing."""
    if not (dsn and schema):
        return dsn
    try:
        options = _OPTION.sub("", parse_dsn(dsn).get("options", ""))
    except psycopg2.ProgrammingError:
        return dsn  # refused, with its remedy, when it is used
    return str(make_dsn(dsn, options=f"{options} -c tidemark.schema={schema}".strip()))


@lru_cache(maxsize=64)
def schema_of(dsn: str) -> str:
    """Return the schema that a DSN carries; empty if it carries none, or cannot be read."""
    try:
        found = _OPTION.search(parse_dsn(dsn).get("options", ""))
    except psycopg2.ProgrammingError:
        return ""
    return found[1] if found else ""


def without_schema(options: str) -> str:
    """Return the options that go to PostgreSQL; all of them if they carry no schema."""
    if not _OPTION.search(options):
        return options
    return _SEARCH_PATH.sub("", _OPTION.sub("", options)).strip()


def owner_prefix(dsn: str) -> str:
    """Return how statements of a remedy begin. Those of a cell choose its schema, as ``psql`` does not."""
    schema = schema_of(dsn)
    return f"as the owner: SET search_path = {schema}; " if schema else "as the owner: "
