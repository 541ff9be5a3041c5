"""Floods of uploads: never finished, too many, too large, of too many parts."""

from __future__ import annotations

from typing import Final

import pytest

from tests.harness.in_process_server import ON_SHARED
from tests.harness.uploads.tus_uploader import TUS, described, encoded, photo, uploader
from tests.security.catalogue import against
from tests.security.pond import Pond

pytestmark = [ON_SHARED, against("API4:2023", "V5.2")]


async def test_flood_of_unfinished_uploads_stops_at_the_bound_of_its_device(pond: Pond) -> None:
    phone = uploader(pond.running, pond.name())
    async with pond.calm("upload_session"):
        begun = [
            await phone.begun(1000, upload_metadata=encoded(described(record_id=pond.name())))
            for _ in range(5)
        ]
        for _ in range(10):
            refused = await phone.create(1000)
            assert refused.verdict == (507, "insufficient_storage")
            assert int(refused.headers["Retry-After"]) >= 45
        for path in begun:
            assert (await phone.cancel(path)).status == 204


async def test_flood_of_cancelled_uploads_stops_at_the_bound_of_a_day(pond: Pond) -> None:
    phone = uploader(pond.running, pond.name())
    for _ in range(20):
        path = await phone.begun(1000, upload_metadata=encoded(described(record_id=pond.name())))
        assert (await phone.cancel(path)).status == 204
    async with pond.calm():
        for _ in range(10):
            refused = await phone.create(1000)
            assert refused.verdict == (429, "rate_limited")
            assert int(refused.headers["Retry-After"]) >= 45


async def test_flood_of_files_of_a_record_stops_at_its_bound(pond: Pond) -> None:
    record = pond.name()
    async with pond.arena.holds("upload_session"):
        for number in range(6):
            phone = uploader(pond.running, pond.name())
            reply = await phone.create(1000, upload_metadata=encoded(described(record_id=record)))
            if number < 3:
                assert reply.status == 201
            else:
                assert reply.verdict == (413, "quota_exceeded")


#: What an upload says of itself -> the refusal of the request that creates it.
CREATIONS: Final[dict[str, tuple[dict[str, str], tuple[int, str]]]] = {
    "101 parts": (
        {"Upload-Concat": "final;" + " ".join(f"/v1/uploads/{number:032x}" for number in range(101))},
        (422, "invalid_message"),
    ),
    "metadata past its limit": (
        {"Upload-Length": "1", "Upload-Metadata": "a " + "YQ==" * 1100},
        (422, "invalid_message"),
    ),
    "10,000 names": (
        {"Upload-Length": "1", "Upload-Metadata": ",".join(f"a{number}" for number in range(4000))},
        (422, "invalid_message"),
    ),
    "a petabyte": (
        {"Upload-Length": str(1 << 50), "Upload-Metadata": encoded(described())},
        (413, "too_large"),
    ),
    "a length of 5,000 digits": (
        {"Upload-Length": "9" * 5000, "Upload-Metadata": encoded(described())},
        (413, "too_large"),
    ),
    "a length below zero": (
        {"Upload-Length": "-1", "Upload-Metadata": encoded(described())},
        (422, "invalid_message"),
    ),
}


@pytest.mark.parametrize("case", CREATIONS)
async def test_flood_of_uploads_past_their_bounds_creates_none(case: str, pond: Pond) -> None:
    said, verdict = CREATIONS[case]
    phone = uploader(pond.running, pond.name())
    async with pond.calm():
        for _ in range(10):
            reply = await phone.ask("POST", "/v1/uploads", TUS | said)
            assert reply.verdict == verdict


async def test_flood_of_bytes_past_the_length_of_an_upload_keeps_none(pond: Pond) -> None:
    phone = uploader(pond.running, pond.name())
    path = await phone.begun(1000)
    async with pond.calm("upload_session"):
        for _ in range(5):
            refused = await phone.append(path, 0, photo(5000))
            assert refused.verdict == (413, "too_large")
        assert await phone.offset(path) == 0
        assert (await phone.cancel(path)).status == 204
