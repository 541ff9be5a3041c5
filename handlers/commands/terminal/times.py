"""Times as options of commands: an instant, or so long ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import click

_AGO: Final = re.compile(r"([1-9]\d{0,5})([smhd])\Z")
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
        try:
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        except OverflowError:
            self.fail("so long ago there was nothing.", param, ctx)
