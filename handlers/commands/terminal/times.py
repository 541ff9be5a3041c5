"""Times as options of commands: an instant, or so long ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import click

_AGO: Final = re.compile(r"([1-9]\d{0,5})([smhd])\Z")
#: A day can be added or taken away, in any zone.
_YEARS: Final = range(2, 9999)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Instant(click.ParamType[datetime]):
    """A day or an instant, UTC without a zone."""

    name = "time"

    def convert(
        self, value: str | datetime, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return the instant, with its zone."""
        if isinstance(value, datetime):
            return value
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            self.fail("a day or an instant such as 2026-01-31 or 2026-01-31T12:00:00Z.", param, ctx)
        if at.year not in _YEARS:
            self.fail(f"a time of the years {_YEARS[0]} to {_YEARS[-1]} is required.", param, ctx)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at


class Since(Instant):
    """An instant, or a duration before now: ``90s``, ``15m``, ``24h``, ``7d``."""

    def convert(
        self, value: str | datetime, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return the instant, with its zone."""
        ago = _AGO.match(value) if isinstance(value, str) else None
        if ago is None:
            return super().convert(value, param, ctx)
        before = timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        now = datetime.now(UTC)
        if before >= now - datetime(_YEARS[0], 1, 1, tzinfo=UTC):
            self.fail("so long ago there was nothing.", param, ctx)
        return now - before
