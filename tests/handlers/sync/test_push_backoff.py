"""The back-off of pushes: what comes behind a refused push waits, and the refused one comes first again."""

from __future__ import annotations

import pytest

from engine.wire.errors import SyncError
from handlers.sync.push_backoff import FIRST_FOR_S, PushBackoff

AWAY = SyncError("unavailable", "the database is away", retry_after_ms=1000)


def test_push_backoff_begun_twice_lasts_as_the_first_said() -> None:
    backoff = PushBackoff()
    assert backoff.begin(10.0, 400, "overloaded") == 400
    assert backoff.begin(10.1, 9000, "rate_limited") == 300
    error = backoff.refusal(10.1)
    assert (error.code, error.details["retry_after_ms"]) == ("overloaded", 300)


def test_push_backoff_extended_lasts_as_long_as_the_longer_of_both() -> None:
    backoff = PushBackoff()
    assert backoff.extend(10.0, 400, "rate_limited") == 400
    assert backoff.extend(10.1, 100, "rate_limited") == 300
    assert backoff.extend(10.1, 900, "rate_limited") == 900


def test_push_backoff_that_is_over_begins_anew_with_its_own_code() -> None:
    backoff = PushBackoff()
    backoff.begin(10.0, 400, "overloaded")
    assert backoff.begin(10.5, 200, "unavailable") == 200
    assert backoff.refusal(10.5).code == "unavailable"


def test_push_backoff_after_an_outage_lets_the_first_refused_key_come_first() -> None:
    backoff = PushBackoff()
    backoff.put_off(AWAY, "first", 10.0)
    backoff.put_off(AWAY, "second", 10.0)
    assert (backoff.first_key, backoff.until_s) == ("first", 11.0)
    with pytest.raises(SyncError) as refused:
        backoff.check_turn("second", 11.5)
    assert (refused.value.code, refused.value.details["retry_after_ms"]) == ("unavailable", 1500)
    backoff.check_turn("first", 11.5)
    assert backoff.first_key is None


def test_push_backoff_whose_first_key_never_comes_lets_others_go_on() -> None:
    backoff = PushBackoff()
    backoff.put_off(AWAY, "first", 10.0)
    backoff.check_turn("second", 11.0 + FIRST_FOR_S)
    assert backoff.first_key is None


def test_push_backoff_of_another_error_is_none() -> None:
    backoff = PushBackoff()
    backoff.put_off(SyncError("internal", "a fault", error_id="e"), "first", 10.0)
    assert (backoff.first_key, backoff.until_s) == (None, 0.0)
