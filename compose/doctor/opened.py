"""A database opened to be looked at, the embedded one too: what keeps it from being opened is a finding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from compose.configuration import database_services, in_cell
from engine.operate.rows import CheckResult
from engine.runtime.settings import Settings, SettingsError
from storage.embedded.account import EmbeddedError
from storage.embedded.servers import NotMadeError, Services, embedded


class Look(Protocol):
    """Looks at a database. ``migrates_itself`` says whether `serve` brings its schema up to date."""

    def __call__(self, at: Services, *, migrates_itself: bool) -> Iterator[CheckResult]:
        """Yield what is found. Raises StoreError."""


def with_database(settings: Settings, look: Look) -> Iterator[CheckResult]:
    """Yield what a look at the database of the settings finds."""
    try:
        given = database_services(settings)
        if given.dsn:
            yield from look(given, migrates_itself=False)
        else:
            with embedded(Path(settings.data.dir), redis=False, make=False) as made:
                yield from look(in_cell(made, settings), migrates_itself=True)
    except NotMadeError as error:
        yield CheckResult("warning", "database", error.found, error.remedy)
    except SettingsError as error:
        yield CheckResult("fault", "database", str(error), "let the account of the server read it")
    except EmbeddedError as error:
        yield CheckResult("fault", "database", str(error), "put that right, or set postgres.dsn")
