"""What others feel: a few devices of a tenant of their own, at a small fixed rate, on open loops.

Another's photo is uploaded before its record, which then comes, and is attached at some time.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections import Counter
from contextlib import suppress
from time import perf_counter
from typing import Any, Final

import msgspec

from bench.harness.environment import BenchError
from bench.harness.load_run import Target
from bench.load.precise_timer import PreciseTimer
from bench.load.simple_device import Message, SimpleDevice
from bench.load.workload import data_of
from bench.report.results import Felt
from bench.report.statistics import latency_of
from bench.uploads.device import FailedError, Uploader
from bench.uploads.workload import Album
from storage.postgres.blocking import connected

DEVICES: Final = 5
#: Messages a second of each kind, over all devices.
PER_S: Final = {"heartbeat": 100.0, "sync": 30.0, "pull": 30.0}
#: How long an answer may take; one that is missing then counts with this.
_GRACE_S: Final = 20.0
_DATA: Final = msgspec.json.decode(data_of(0, 0))
_PHOTO_BYTES: Final = 20_000
_LOOK_S: Final = 0.02
#: A photo that is not attached after this counts with it.
_PATIENCE_S: Final = 60.0


class Others:
    """All of them. Between two phases they connect anew, so that nothing of one is answered in the next."""

    def __init__(self, target: Target, tenant: str, tls: ssl.SSLContext | None = None) -> None:
        self._target = target
        self._tls = tls
        self.names = [f"other-{place}" for place in range(DEVICES)]
        self._tokens = [target.token(tenant, name) for name in self.names]
        self._devices: list[SimpleDevice] = []
        self._cursors: list[str | None] = []
        self._took_us: dict[str, list[int]] = {}
        self._refused: Counter[str] = Counter()

    async def connect(self) -> None:
        """Open all sockets anew."""
        self._took_us = {kind: [] for kind in PER_S}
        self._refused = Counter()
        self._cursors = [None] * DEVICES
        self._devices = [SimpleDevice(self._told, answer_s=_GRACE_S) for _ in self.names]
        for device, signed in zip(self._devices, self._tokens, strict=True):
            try:
                await device.open(self._target.host, self._target.port, signed, tls=self._tls)
            except OSError as error:  # TimeoutError is one
                self._refused[f"handshake: {error}"] += 1

    def _told(self, message: Message) -> None:
        """Count an error or a goodbye that answers nothing."""
        self._refused[message.get("code") or message["type"]] += 1

    async def feel(self, duration_s: float) -> Felt:
        """Send each message at its fixed time for so long, wait for the last answers, and leave."""
        due = sorted(
            ((place + offset) / per_s, kind, place % DEVICES)
            for offset, (kind, per_s) in enumerate(PER_S.items())
            for place in range(int(per_s * duration_s))
        )
        due.reverse()
        asking: list[asyncio.Task[None]] = []
        start_s, over = perf_counter(), asyncio.get_running_loop().create_future()

        def send() -> None:
            while due and due[-1][0] <= perf_counter() - start_s:
                at_s, kind, place = due.pop()
                asking.append(asyncio.create_task(self._ask(kind, place, start_s + at_s)))
            if due:
                alarm.set(start_s + due[-1][0])
            elif not over.done():
                over.set_result(None)

        alarm = PreciseTimer(send)
        try:
            send()
            await over
        finally:
            alarm.close()
        await asyncio.gather(*asking)
        for device in self._devices:
            device.close()
        latencies = {kind: latency_of(took_us) for kind, took_us in self._took_us.items()}
        return Felt(**latencies, refused=self._refused)

    async def _ask(self, kind: str, place: int, due_s: float) -> None:
        """Send one message, and count how long it took from when it was due."""
        fields: dict[str, Any] = {"cursor": self._cursors[place], "limit": 100} if kind == "pull" else {}
        if kind == "sync":
            name = secrets.token_hex(8)
            item = {"domain": "task", "id": name, "op": "put", "base": None, "data": _DATA}
            fields = {"key": name, "items": [item]}
        try:
            answer = await self._devices[place].ask(kind, **fields)
        except TimeoutError:
            answer = {"type": "error", "code": "unanswered"}
        self._took_us[kind].append(round((perf_counter() - due_s) * 1e6))
        if answer["type"] == "error":
            self._refused[answer["code"]] += 1
        elif any(result["status"] != "applied" for result in answer.get("results", ())):
            self._refused["item"] += 1
        self._cursors[place] = answer.get("cursor") or self._cursors[place]


async def photo_s(target: Target, tenant: str) -> float:
    """Upload a photo and send its record. Returns the seconds from the record's answer until it is attached.

    Raises BenchError.
    """
    mark = secrets.token_hex(6)
    picture = Album(mark, 1, _PHOTO_BYTES, _PHOTO_BYTES).picture(0, 0)
    address = target.host, target.port
    uploader = Uploader(address, target.token(tenant, f"photo-{mark}"), _PHOTO_BYTES)
    try:
        stored = await uploader.upload(picture)
        await uploader.make_record(picture.record_id)
    except (FailedError, OSError) as error:
        raise BenchError(f"a photo was not uploaded: {error}") from None
    finally:
        uploader.close()
    came_s = perf_counter()
    with suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_S):
            # Only the database shows it.
            while await asyncio.to_thread(_state, target.dsn, stored.file_id) != "attached":  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_S)
    return perf_counter() - came_s


def _state(dsn: str, upload_id: str) -> str | None:
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT state FROM upload_session WHERE upload_id = %s::uuid", (upload_id,))
        found = cursor.fetchall()
    return found[0][0] if found else None
