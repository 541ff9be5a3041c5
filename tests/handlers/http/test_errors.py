"""Exceptions as devices and the log are told of them."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from engine.cache.key_ring import KeysUnavailableError
from engine.runtime.ports import StoreError, StoreUnavailableError
from handlers.http.errors import as_sync_error
from storage.stores.sealed.sealing import UnreadableValueError

NAMED = "records.data of patient r1: of another row"


@pytest.mark.parametrize("error", [UnreadableValueError(1, NAMED), KeysUnavailableError(NAMED)])
def test_as_sync_error_what_cannot_be_opened_is_named_in_the_log_and_not_to_the_device(
    error: StoreError,
) -> None:
    with capture_logs() as logs:
        told = as_sync_error(error, tenant="acme")
    assert (told.code, list(told.details)) == ("unavailable", ["retry_after_ms"])
    assert told.message == "the stored data cannot be read now"
    (line,) = logs
    assert line["event"] == "store_failed"
    assert (line["reason"], line["detail"], line["tenant"]) == (type(error).__name__, NAMED, "acme")


@pytest.mark.parametrize(
    "error", [StoreError("DETAIL: Key (name)=(secret)"), StoreUnavailableError("secret")]
)
def test_as_sync_error_sentence_of_the_database_stays_out_of_the_log(error: StoreError) -> None:
    with capture_logs() as logs:
        told = as_sync_error(error)
    assert told.message == "the database is away"
    assert "secret" not in str(logs)
