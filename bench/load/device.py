"""One connection of the load generator, and the tally that all of them keep."""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from datetime import UTC, datetime
from time import perf_counter

import msgspec

from bench.load.plan import Unsure
from bench.load.websocket_client import Socket, frame
from bench.load.workload import DOMAIN, Sent, Worker, record_id

#: A closed loop goes on after an error, but not faster than this.
_AFTER_ERROR_S = 0.1

_SUBSCRIBE = frame(b'{"type":"subscribe","id":"live","cursor":null,"domains":null}')


class _Result(msgspec.Struct, gc=False):
    status: str
    domain: str | None = None
    id: str | None = None
    version: int | None = None
    seq: int | None = None


class _Answer(msgspec.Struct, gc=False):
    """Any message of the server, as far as it matters here."""

    type: str
    id: str | None = None
    code: str = ""
    reason: str = ""
    session: str | None = None
    replayed: bool = False
    results: tuple[_Result, ...] = ()


_decode = msgspec.json.Decoder(_Answer).decode


class Tally:
    """What all devices saw. Times are seconds of ``perf_counter``; the arrays of one kind go together."""

    def __init__(self) -> None:
        self.errors: Counter[str] = Counter()
        self.unsure: list[Unsure] = []
        self.sent = 0
        self.due_s = array("d")
        self.latency_us = array("Q")
        self.answered_s = array("d")
        self.lateness_us = array("Q")
        self.ack_device = array("L")
        self.ack_number = array("L")
        self.ack_record = array("L")
        self.ack_version = array("Q")
        self.ack_seq = array("Q")


class Device:
    """One device and its connection. ``again`` keeps a closed loop going."""

    __slots__ = (
        "_index",
        "_name",
        "_session",
        "_tally",
        "_under_way",
        "_worker",
        "again",
        "greeted",
        "socket",
    )

    def __init__(self, index: int, name: str, worker: Worker, tally: Tally) -> None:
        self._index = index
        self._name = name
        self._worker = worker
        self._tally = tally
        self._under_way: dict[str | None, Sent] = {}
        self._session: str | None = None
        self.socket: Socket | None = None
        self.again = False
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def under_way(self) -> int:
        """How many syncs have no answer yet."""
        return len(self._under_way)

    def give_up(self) -> None:
        """Wait for answers no longer."""
        for sent in self._under_way.values():
            self._doubt(sent)

    def _doubt(self, sent: Sent) -> None:
        self._tally.unsure.append(Unsure(self._index, sent.number, sent.record))

    def send(self, due_s: float) -> None:
        """Send the next sync, which was meant to leave at ``due_s``."""
        tally = self._tally
        if self.socket is None:
            tally.errors["not_connected"] += 1
            return
        sent = self._worker.next(due_s)
        self._under_way[str(sent.number)] = sent
        tally.sent += 1
        tally.lateness_us.append(int((perf_counter() - due_s) * 1e6))
        self.socket.write(frame(self._worker.message(sent)))

    def introduce(self) -> None:
        """Say what the clock shows, as the guide has it; rivals name no session, and know no such message."""
        if self.socket is not None and self._session is not None:
            clock = datetime.now(UTC).isoformat().encode()
            self.socket.write(frame(b'{"type":"hello","app_version":"bench","clock":"%b"}' % clock))

    def subscribe(self) -> None:
        """Ask for every change; ``greeted`` is done once more when that is answered."""
        if self.socket is not None:
            self.greeted = asyncio.get_running_loop().create_future()
            self.socket.write(_SUBSCRIBE)

    def received(self, text: bytes) -> None:
        """Take a message of the server."""
        now_s = perf_counter()
        try:
            answer = _decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._tally.errors["not_understood"] += 1
            return
        if answer.type == "synced":
            self._synced(answer, now_s)
        elif answer.type == "error":
            self._failed(answer)
        elif answer.type == "goodbye":
            self._tally.errors[f"goodbye_{answer.reason}"] += 1
        elif answer.type in ("welcome", "changes") and not self.greeted.done():
            self._session = answer.session or self._session
            self.greeted.set_result(None)

    def _synced(self, answer: _Answer, now_s: float) -> None:
        tally = self._tally
        sent = self._under_way.pop(answer.id, None)
        if sent is None:
            tally.errors["answer_to_nothing"] += 1
            return
        result = answer.results[0] if len(answer.results) == 1 else _Result("missing")
        if result.status != "applied" or answer.replayed:
            tally.errors[f"item_{'replayed' if answer.replayed else result.status}"] += 1
        elif (
            result.domain != DOMAIN
            or result.id != record_id(self._name, sent.record)
            or result.version != sent.base + 1
            or result.seq is None
        ):
            tally.errors["wrong_result"] += 1
        else:
            self._worker.acknowledged(sent.record, result.version)
            tally.ack_device.append(self._index)
            tally.ack_number.append(sent.number)
            tally.ack_record.append(sent.record)
            tally.ack_version.append(result.version)
            tally.ack_seq.append(result.seq)
            tally.due_s.append(sent.due_s)
            tally.answered_s.append(now_s)
            tally.latency_us.append(int((now_s - sent.due_s) * 1e6))
            if self.again:
                self.send(perf_counter())
            return
        self._unlucky(sent)

    def _failed(self, answer: _Answer) -> None:
        self._tally.errors[answer.code] += 1
        sent = self._under_way.pop(answer.id, None)
        if sent is not None:
            self._unlucky(sent)
        elif not self.greeted.done():
            self.greeted.set_result(None)

    def _unlucky(self, sent: Sent) -> None:
        self._doubt(sent)
        if self.again:
            asyncio.get_running_loop().call_later(_AFTER_ERROR_S, self._resume)

    def _resume(self) -> None:
        if self.again:
            self.send(perf_counter())

    def ended(self, code: int) -> None:
        """The connection is over."""
        self.socket = None
        self._tally.errors[f"closed_{code}"] += 1
        if not self.greeted.done():
            self.greeted.set_result(None)
