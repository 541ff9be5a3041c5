"""What happens to a device while its large message is under way: refusals, a revocation, others' messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from engine.commit.committer import Committer
from engine.commit.lane import unavailable
from engine.commit.validation import MessageValidator
from engine.plan.work import Push
from engine.runtime.loop_scheduler import LARGE_BYTES
from engine.runtime.partial_messages import SMALL_BYTES
from tests.contract.test_frames_masked import HANDSHAKE, closed, shaken
from tests.harness.admin import revoke_device
from tests.harness.in_process_server import Running, Serve
from tests.harness.postgres_stalls import counts
from tests.harness.raw_http import frame, wired

TEXT = 1
Json = dict[str, Any]


def _item(mark: str, size_bytes: int) -> Json:
    return {"domain": "task", "id": mark, "op": "put", "base": None, "data": {"n": "x" * size_bytes}}


def _sync(mark: str, size_bytes: int) -> Json:
    return {"type": "sync", "id": mark, "key": mark, "items": [_item(mark, size_bytes)]}


class _Held:
    """Large messages are checked, step after step, until they are let go."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.is_over = False


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> _Held:
    held = _Held()
    pushing = MessageValidator.push_steps

    def waiting(self: MessageValidator, *rest: Any) -> Generator[None, None, Push]:
        held.begun.set()
        while not held.is_over:
            yield
        return (yield from pushing(self, *rest))

    monkeypatch.setattr(MessageValidator, "push_steps", waiting)
    return held


@pytest.mark.asyncio(loop_scope="function")
async def test_large_message_does_not_overtake_one_that_is_refused_while_it_is_checked(
    server: Running, held: _Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies: list[Callable[[Any], None]] = []
    submit = Committer.submit

    def kept(_: Committer, __: Any, reply: Callable[[Any], None], ___: Any = None) -> None:
        replies.append(reply)

    monkeypatch.setattr(Committer, "submit", kept)
    phone = await server.device("phone")
    await phone.send(_sync("a", 1))
    await phone.send(_sync("b", LARGE_BYTES))
    await held.begun.wait()
    replies[0](unavailable(60_000))
    monkeypatch.setattr(Committer, "submit", submit)
    held.is_over = True
    answers = [await phone.receive() for _ in range(2)]
    assert [(one["id"], one.get("code")) for one in answers] == [("a", "unavailable"), ("b", "unavailable")]


@pytest.mark.asyncio(loop_scope="function")
async def test_large_message_of_a_device_that_is_revoked_while_it_is_checked_is_not_stored(
    server: Running, held: _Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[Any] = []
    monkeypatch.setattr(Committer, "submit", lambda _, job, *__: submitted.append(job))
    phone = await server.device("phone")
    await phone.send(_sync("a", LARGE_BYTES))
    await held.begun.wait()
    other = asyncio.create_task(server.post("/v1/sync", _sync("b", LARGE_BYTES)))
    revoke_device(server.dsn, "acme", "phone")
    assert (await phone.receive())["reason"] == "revoked"
    held.is_over = True
    assert (await other).verdict == (401, "unauthenticated")
    await counts(server, "tidemark_partial_bytes", 0)
    assert submitted == []


@pytest.mark.asyncio(loop_scope="function")
async def test_large_messages_that_wait_for_their_turn_count_for_their_tenant(
    serve: Serve, held: _Held
) -> None:
    size_bytes = SMALL_BYTES * 4
    server = await serve(limits={"tenant_waiting_bytes": size_bytes + SMALL_BYTES * 2})
    payload = b'{"type":"sync","id":"1","key":"k","items":[' + b" " * (size_bytes - 45) + b"]}"
    whole = frame(TEXT, payload)
    async with AsyncExitStack() as stack:
        first, over = [await stack.enter_async_context(wired(server.url)) for _ in range(2)]
        for wire, name in ((first, "phone"), (over, "tablet")):
            assert (await shaken(wire, HANDSHAKE | server.headers(name))).status == 101
            await wire.send(whole[:1000])
        await counts(server, "tidemark_partial_bytes", 2000)
        await first.send(whole[1000:])
        await held.begun.wait()
        await counts(server, "tidemark_partial_bytes", 1000 + len(payload))
        await over.send(whole[1000 : SMALL_BYTES * 3])
        messages, code = await closed(over)
        assert (messages[-1]["code"], code) == ("overloaded", 4503)
        held.is_over = True
        await counts(server, "tidemark_partial_bytes", 0)
