"""Headers that libraries read at length, or fail on: they cost nobody anything, and are answered in words."""

from __future__ import annotations

import pytest

from tests.serving import ON_SHARED, Running
from tests.uploading import TUS, uploader
from tests.wire import Answer, wired

pytestmark = ON_SHARED

#: A grammar of mail takes the first apart for half a minute, and cannot take the second apart at all.
COMMENTS = {"many": "(" + "(a)" * 6000, "nested": "(" * 300}


async def asked(
    server: Running, method: str, path: str, headers: dict[str, str], body: bytes = b"{}"
) -> Answer:
    async with wired(server.url) as wire:
        return await wire.ask(method, path, server.headers() | headers, body)


@pytest.mark.parametrize("comment", COMMENTS)
@pytest.mark.parametrize("spelling", ["tus", "draft", "sync"])
async def test_a_type_of_comments_is_refused_at_once(comment: str, spelling: str, shared: Running) -> None:
    path = "/v1/sync" if spelling == "sync" else await uploader(shared).begun(1000)
    method = "POST" if spelling == "sync" else "PATCH"
    more = {"tus": TUS, "draft": {"Upload-Draft-Interop-Version": "6"}, "sync": {}}[spelling]
    headers = more | {"Upload-Offset": "0", "Content-Type": COMMENTS[comment]}
    answer = await asked(shared, method, path, headers)
    assert answer.verdict == (400, "malformed")
