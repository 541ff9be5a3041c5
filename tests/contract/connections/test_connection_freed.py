"""A connection that is over leaves nothing behind that only the garbage collector would free."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import pytest

from engine.feed.subscription import Subscription
from handlers.http.edge_protocol import EdgeProtocol
from handlers.http.read_buffers import BoundedReads
from handlers.sync.connection import Connection
from handlers.sync.device_socket import DeviceSocket
from handlers.sync.frames import Frames, Gate
from handlers.sync.outbox import Outbox
from handlers.sync.pushes import Pushes
from handlers.sync.reads import Reads
from handlers.sync.subscription_sink import SubscriptionSink
from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.postgres_stalls import until
from tests.harness.ws_device import Device, put

pytestmark = ON_SHARED

_PARTS: Final = {
    *(EdgeProtocol, BoundedReads, Frames, Gate, DeviceSocket, Outbox),
    *(Connection, Pushes, Reads, Subscription, SubscriptionSink),
}


def _parts(but: Sequence[object] = ()) -> list[object]:
    known = {id(one) for one in but}
    return [one for one in gc.get_objects() if type(one) in _PARTS and id(one) not in known]


async def _close(_: Running, device: Device) -> None:
    await device.socket.close()


async def _cut(_: Running, device: Device) -> None:
    await device.send({"type": "sync", "id": "last", "key": "last", "items": [put("two")]})
    connection = device.socket._response.connection
    assert connection is not None
    assert connection.transport is not None
    connection.transport.abort()


async def _replace(server: Running, device: Device) -> None:
    newer = await server.device("phone")
    await newer.socket.ping()
    await device.closed()
    await newer.socket.close()


@pytest.mark.parametrize("end", [_close, _cut, _replace])
async def test_connection_that_ended_is_freed_without_a_collection(
    end: Callable[[Running, Device], Awaitable[None]], shared: Running
) -> None:
    gc.collect()
    before = _parts()

    async def freed() -> bool:
        return not _parts(before)

    gc.disable()
    try:
        device = await shared.device("phone")
        await device.push(put("one"))
        await device.told("changes", "subscribe", domains=["task"], since=None)
        assert {type(one) for one in _parts(before)} == _PARTS
        await end(shared, device)
        await until(freed)
    finally:
        gc.enable()
