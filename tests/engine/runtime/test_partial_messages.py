"""Messages that wait for their rest or their turn: their bytes are bounded by tenant and process."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from engine.runtime.partial_messages import SMALL_BYTES, PartialMessages
from tests.contract.test_frames_masked import HANDSHAKE, closed, shaken
from tests.harness.in_process_server import Serve
from tests.harness.postgres_stalls import counts
from tests.harness.raw_http import Wire, frame, wired

TEXT = 1
LARGE = SMALL_BYTES * 2


def test_partial_messages_of_a_tenant_are_bounded_and_leave_others_room() -> None:
    partial = PartialMessages(3 * LARGE, 100 * LARGE)
    assert all(partial.change(1, 0, LARGE) for _ in range(3))
    assert not partial.change(1, 0, LARGE)
    assert partial.refused == 1
    assert partial.change(1, LARGE, 0)
    assert partial.change(2, 0, LARGE)
    assert partial.waiting_bytes == 4 * LARGE


def test_partial_messages_small_ones_are_never_refused() -> None:
    partial = PartialMessages(1, 1)
    assert all(partial.change(1, 0, SMALL_BYTES) for _ in range(10))
    assert not partial.change(1, SMALL_BYTES, SMALL_BYTES + 1)


def test_partial_messages_of_all_are_refused_to_tenants_with_their_equal_part_alone() -> None:
    partial = PartialMessages(10 * LARGE, 5 * LARGE)
    assert all(partial.change(1, 0, LARGE) for _ in range(5))
    assert partial.change(2, 0, LARGE)
    assert not partial.change(1, 0, LARGE)
    assert partial.change(1, LARGE, 0)
    assert partial.change(2, LARGE, 2 * LARGE)


async def _begun(wire: Wire, server_headers: dict[str, str], payload: bytes) -> None:
    assert (await shaken(wire, HANDSHAKE | server_headers)).status == 101
    await wire.send(frame(TEXT, payload, final=False))


@pytest.mark.asyncio(loop_scope="function")
async def test_socket_of_a_tenant_with_too_many_partial_messages_is_closed_others_go_on(serve: Serve) -> None:
    server = await serve(limits={"tenant_waiting_bytes": LARGE})
    async with AsyncExitStack() as stack:
        first, over, other = [await stack.enter_async_context(wired(server.url)) for _ in range(3)]
        begun = b'{"type":"heartbeat","id":"1","x":"' + b"x" * (LARGE - 1000)
        await _begun(first, server.headers("phone"), begun)
        await counts(server, "tidemark_partial_bytes", len(begun))
        await _begun(over, server.headers("tablet"), begun)
        messages, code = await closed(over)
        assert (messages[-1]["code"], code) == ("overloaded", 4503)
        assert messages[-1]["retry_after_ms"] > 0
        await _begun(other, server.headers("phone", "globex"), begun)
        for wire in (first, other):
            await wire.send(frame(0, b'"}'))
        await counts(server, "tidemark_messages_received_total", 2)
        await counts(server, "tidemark_partial_refused_total", 1)
