"""What a device with several syncs in flight sends again, and when, without a socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.client.protocol import ProtocolError
from bench.client.store import Store
from bench.faults.pipelining import PipeliningProtocol


class _Played:
    """A protocol that pipelines, with a server and a time that the test plays."""

    def __init__(self, store: Store) -> None:
        self.now_s = 100.0
        self.store = store
        self.protocol = PipeliningProtocol(store, lambda: 0, lambda: self.now_s)
        limits = {"frame_bytes": 1 << 20, "items": 500, "record_bytes": 1 << 18, "messages_per_minute": 6000}
        welcome = {"session": "s", "server_time": "1970-01-01T00:00:00Z", "epoch": "e", "heartbeat_s": 30}
        self.say("welcome", limits=limits, policies={}, **welcome)

    def say(self, kind: str, **fields: Any) -> list[tuple[str, str]]:
        return _syncs(self.protocol.hear(json.dumps({"type": kind, **fields})))

    def edit(self) -> tuple[str, str]:
        """Make an edit. Returns the id and the key of its sync."""
        self.store.edit("task", "a", "put", {}, 0)
        [sync] = _syncs(self.protocol.wake())
        return sync

    def wake_after(self, wait_s: float) -> list[tuple[str, str]]:
        self.now_s += wait_s
        return _syncs(self.protocol.wake())


def _syncs(frames: list[bytes]) -> list[tuple[str, str]]:
    said = [json.loads(frame) for frame in frames]
    return [(one["id"], one["key"]) for one in said if one["type"] == "sync"]


def test_pipelining_all_without_an_answer_sent_again_in_order(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite", "a", durability="NORMAL")
    played = _Played(store)
    sent = [played.edit() for _ in range(4)]
    keys = [key for _, key in sent]
    result = {"status": "applied", "domain": "task", "id": "a", "version": 1, "seq": 1}
    assert played.say("synced", id=sent[0][0], replayed=False, results=[result]) == []
    refusal = {"code": "unavailable", "message": "no", "retryable": True, "retry_after_ms": 500}
    assert [played.say("error", id=sent[index][0], **refusal) for index in (1, 2)] == [[], []]
    assert played.wake_after(0.4) == []
    again = played.wake_after(0.2)
    assert [key for _, key in again] == keys[1:]
    assert played.wake_after(1.0) == []
    played.say("synced", id=sent[3][0], replayed=False, results=[result])
    assert played.protocol.pause_s == pytest.approx(1.0)
    assert [key for _, key in played.wake_after(1.1)] == keys[1:3]
    with pytest.raises(ProtocolError, match="silent"):
        played.wake_after(2.0)
    store.close()
