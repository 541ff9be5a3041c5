"""What others feel: a few devices of a tenant of their own, at a small fixed rate, on open loops."""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections import Counter, defaultdict
from contextlib import suppress
from time import perf_counter
from typing import Final

import msgspec

from bench.harness.load_run import Target
from bench.load.precise_timer import PreciseTimer
from bench.load.websocket_client import HandshakeError, Socket, connect
from bench.load.workload import data_of
from bench.report.results import Felt
from bench.report.statistics import latency_of

DEVICES: Final = 5
#: Messages a second of each kind, over all devices.
PER_S: Final = {"heartbeat": 100.0, "sync": 30.0, "pull": 30.0}
#: How long answers may take that are missing at the end; what is missing then counts with this.
GRACE_S: Final = 20.0


class _Result(msgspec.Struct):
    status: str


class _Answer(msgspec.Struct):
    type: str
    id: str = ""
    code: str = ""
    cursor: str | None = None
    results: list[_Result] = []


_decode = msgspec.json.Decoder(_Answer).decode


class _Other:
    """One device."""

    def __init__(self, name: str, others: Others) -> None:
        self._name = name
        self._others = others
        self._cursor: str | None = None
        self._waiting: dict[str, tuple[str, float]] = {}
        self._number = 0
        self.socket: Socket | None = None
        self.mark = secrets.token_hex(4)

    @property
    def waiting(self) -> list[tuple[str, float]]:
        """Kinds and due times of what was not answered."""
        return list(self._waiting.values())

    def send(self, kind: str, due_s: float) -> None:
        """Send the next message of a kind."""
        if self.socket is None:
            self._others.refused["not_connected"] += 1
            return
        self._number = number = self._number + 1
        mark = f"{self.mark}-{number}"
        message: dict[str, object] = {"type": kind, "id": mark}
        if kind == "sync":
            message["key"] = mark
            data = msgspec.json.decode(data_of(number, 0))
            message["items"] = [{"domain": "task", "id": mark, "op": "put", "base": None, "data": data}]
        elif kind == "pull":
            message |= {"cursor": self._cursor, "limit": 100}
        self._waiting[mark] = kind, due_s
        self.socket.send(msgspec.json.encode(message))

    def heard(self, text: bytes) -> None:
        """Take an answer."""
        now_s = perf_counter()
        answer = _decode(text)
        kind, due_s = self._waiting.pop(answer.id, ("", 0.0))
        if answer.type == "error":
            self._others.refused[answer.code] += 1
        elif answer.type == "goodbye":
            self._others.refused["goodbye"] += 1
        elif kind:
            self._others.took_us[kind].append(round((now_s - due_s) * 1e6))
            if any(result.status != "applied" for result in answer.results):
                self._others.refused["item"] += 1
            self._cursor = answer.cursor or self._cursor

    def ended(self, code: int) -> None:
        """Count a connection that ended; it stays so for the rest of the phase."""
        if self.socket is not None:
            self._others.refused[f"closed_{code}"] += 1
        self.socket = None

    def close(self) -> None:
        """Leave."""
        socket, self.socket = self.socket, None
        if socket is not None:
            socket.close()


class Others:
    """All of them. Between two phases they connect anew, so that nothing of one is answered in the next."""

    def __init__(self, target: Target, tenant: str, tls: ssl.SSLContext | None = None) -> None:
        self._target = target
        self._tls = tls
        self.names = [f"other-{place}" for place in range(DEVICES)]
        self._tokens = [target.token(tenant, name) for name in self.names]
        self._devices: list[_Other] = []
        self.took_us: defaultdict[str, list[int]] = defaultdict(list)
        self.refused: Counter[str] = Counter()
        self._late_us: list[int] = []

    async def connect(self) -> None:
        """Open all sockets anew."""
        self.took_us.clear()
        self.refused.clear()
        self._late_us.clear()
        self._devices = [_Other(name, self) for name in self.names]
        for device, signed in zip(self._devices, self._tokens, strict=True):
            try:
                device.socket = await connect(
                    *(self._target.host, self._target.port, signed, device.heard, device.ended),
                    tls=self._tls,
                )
            except (HandshakeError, OSError) as error:  # TimeoutError is one
                self.refused[f"handshake: {error}"] += 1

    async def feel(self, duration_s: float) -> None:
        """Send for so long, each message at its fixed time."""
        due = sorted(
            ((place + offset) / per_s, kind, place)
            for offset, (kind, per_s) in enumerate(PER_S.items())
            for place in range(int(per_s * duration_s))
        )
        due.reverse()
        start_s = perf_counter()
        over = asyncio.get_running_loop().create_future()

        def send() -> None:
            while due and due[-1][0] <= perf_counter() - start_s:
                at_s, kind, place = due.pop()
                self._late_us.append(round((perf_counter() - start_s - at_s) * 1e6))
                self._devices[place % DEVICES].send(kind, start_s + at_s)
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

    async def answered(self) -> None:
        """Wait for the last answers and leave; what is missing counts as refused."""
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                # An event would have to be looked after with every message.
                while any(device.socket and device.waiting for device in self._devices):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        now_s = perf_counter()
        for device in self._devices:
            for kind, due_s in device.waiting:
                self.refused["unanswered"] += 1
                self.took_us[kind].append(round((now_s - due_s) * 1e6))
            device.close()

    def felt(self) -> Felt:
        """Sum up the last phase."""
        return Felt(
            **{kind: latency_of(self.took_us[kind]) for kind in PER_S},
            refused=dict(self.refused),
            late_p99_ms=latency_of(self._late_us).p99_ms,
        )
