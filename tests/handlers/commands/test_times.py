"""Times as options: every one that is taken can be rounded to a day of any zone."""

from __future__ import annotations

from datetime import UTC, timedelta

import click
import pytest

from handlers.commands.terminal.times import Since


@pytest.mark.parametrize(
    "text",
    ["0001-01-01T00:00:00+14:00", "0001-12-31", "9999-12-31T23:59:59", "9999-01-01", "740000d", "999999d"],
)
def test_since_time_that_cannot_be_rounded_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Since().convert(text, None, None)


@pytest.mark.parametrize("text", ["0002-01-01T00:00:00+14:00", "9998-12-31T23:59:59-14:00", "7d"])
def test_since_time_that_is_taken_can_be_rounded(text: str) -> None:
    at = Since().convert(text, None, None).astimezone(UTC)
    assert at - timedelta(1) < at < at + timedelta(1)
