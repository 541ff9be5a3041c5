"""What the reference device says and what it makes of the answers, frame by frame, without a socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.client.device import Backoff, remedy
from bench.client.protocol import DeviceProtocol, ProtocolError
from bench.client.store import Store
from bench.client.telemetry import count
from engine.model.minutes import DURATION_BOUNDS_US
from tests.harness.ws_device import Json

LIMITS = {"frame_bytes": 1 << 20, "items": 500, "record_bytes": 262144, "messages_per_minute": 6000}


class Played:
    """A protocol with a server that the test plays; time stands still unless the test moves it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now_s = 100.0
        self.clock_ahead_us = 0
        self.connect()

    def connect(self) -> None:
        """Begin a new connection on the same store."""
        self.protocol = DeviceProtocol(self.store, self._clock_us, lambda: self.now_s)
        self.told: list[Json] = []

    def _clock_us(self) -> int:
        return round((self.now_s - 93) * 1_000_000) + self.clock_ahead_us

    def say(self, kind: str, **fields: Any) -> list[Json]:
        """Have the server say something; gives what the device says to it."""
        return self.heard(self.protocol.hear(msgspec.json.encode({"type": kind, **fields})))

    def heard(self, frames: list[bytes]) -> list[Json]:
        """Take in what the device says."""
        said = [json.loads(frame) for frame in frames]
        self.told += said
        return said

    def greet(self, **limits: int) -> list[Json]:
        """Say welcome."""
        return self.say(
            "welcome", session="s", server_time="1970-01-01T00:00:09Z", epoch="e", heartbeat_s=30,
            limits=LIMITS | limits, policies={"task": "manual"},
        )  # fmt: skip

    def last(self, kind: str) -> Json:
        """Find the latest message of a type that the device said."""
        return [said for said in self.told if said["type"] == kind][-1]

    def page(self, *changes: Json, more: bool = False, cursor: str = "c") -> list[Json]:
        """Answer the latest pull or subscription."""
        asked = [said for said in self.told if said["type"] in {"pull", "subscribe"}][-1]
        return self.say("changes", id=asked["id"], cursor=cursor, more=more, changes=changes)

    def synced(self, *results: Json, replayed: bool = False) -> list[Json]:
        """Answer the latest push."""
        return self.say("synced", id=self.last("sync")["id"], replayed=replayed, results=results)

    def refuse(self, kind: str, code: str, *, retryable: bool, **fields: Any) -> list[Json]:
        """Answer the latest request of a type with an error."""
        request_id = self.last(kind)["id"]
        return self.say("error", id=request_id, code=code, message="no", retryable=retryable, **fields)


@pytest.fixture
def played(tmp_path: Path) -> Iterator[Played]:
    store = Store(tmp_path / "phone.sqlite", "phone", durability="NORMAL")
    yield Played(store)
    store.close()


def kinds(said: list[Json]) -> list[str]:
    return [message["type"] for message in said]


def applied(version: int = 1) -> Json:
    return {"status": "applied", "domain": "task", "id": "a", "version": version, "seq": version}


def test_protocol_sends_hello_pulls_and_then_subscribes(played: Played) -> None:
    hello, pull = played.greet()
    assert hello == {
        "type": "hello",
        "app_version": "reference",
        "clock": "1970-01-01T00:00:07Z",
        "server_time": "1970-01-01T00:00:09Z",
    }
    assert (pull["type"], pull["cursor"]) == ("pull", None)
    assert played.page(more=True, cursor="c1")[0]["cursor"] == "c1"
    [subscribe] = played.page(cursor="c2")
    assert (subscribe["type"], subscribe["cursor"]) == ("subscribe", "c2")
    assert played.page(cursor="c3") == []
    assert played.store.cursor == "c3"
    assert played.protocol.idle


def test_protocol_clock_set_says_hello_before_it_pushes(played: Played) -> None:
    played.greet()
    played.page()
    played.protocol.heartbeat()
    played.now_s += 31
    played.say("heartbeat_ack", id="3", server_time="1970-01-01T00:00:40Z", health_score=100)
    assert played.protocol.wake() == []
    played.clock_ahead_us = 3_600_000_000
    played.store.edit("task", "a", "put", {}, 0)
    hello, pushed = played.heard(played.protocol.wake())
    assert (hello["clock"], hello["server_time"]) == ("1970-01-01T01:00:38Z", "1970-01-01T00:00:40Z")
    assert pushed["type"] == "sync"
    assert played.protocol.wake() == []


def test_protocol_pages_of_another_request_ignored(played: Played) -> None:
    played.greet()
    assert played.say("changes", id="99", cursor="x", more=False, changes=[]) == []
    assert played.store.cursor is None


def test_protocol_next_message_follows_the_answer(played: Played) -> None:
    played.store.edit("task", "a", "put", {}, 0)
    assert kinds(played.greet()) == ["hello", "pull", "sync"]
    played.store.edit("task", "a", "patch", {"x": 1}, 0)
    assert played.protocol.wake() == []
    [second] = played.synced(applied())
    assert [item["op"] for item in second["items"]] == ["patch"]
    assert played.synced(applied(2)) == []


def test_protocol_unanswered_message_repeated_on_the_next_connection(played: Played) -> None:
    played.store.edit("task", "a", "put", {}, 0)
    played.greet()
    first = played.last("sync")
    played.store.edit("task", "b", "put", {}, 0)
    played.connect()
    played.greet()
    assert played.last("sync") | {"id": ""} == first | {"id": ""}


@pytest.mark.parametrize("code", ["rate_limited", "overloaded", "unavailable", "internal"])
def test_protocol_retryable_error_waits_and_repeats_the_message(played: Played, code: str) -> None:
    played.store.edit("task", "a", "put", {}, 0)
    played.greet()
    first = played.last("sync")
    assert played.refuse("sync", code, retryable=True, retry_after_ms=250) == []
    assert played.protocol.pause_s == 0.25
    assert played.protocol.wake() == []
    played.now_s += 0.25
    [again] = played.heard(played.protocol.wake())
    assert again["key"] == first["key"]
    assert again["items"] == first["items"]


def test_protocol_of_two_pauses_the_later_end_counts(played: Played) -> None:
    played.store.edit("task", "a", "put", {}, 0)
    played.greet()
    played.refuse("sync", "overloaded", retryable=True, retry_after_ms=5000)
    played.refuse("pull", "overloaded", retryable=True, retry_after_ms=100)
    assert played.protocol.pause_s == 5


def test_protocol_refused_message_split_until_bad_item_found(played: Played) -> None:
    for name in "abcd":
        played.store.edit("task", name, "put", {}, 0)
    played.greet()
    sizes = [len(played.last("sync")["items"])]
    while played.store.waiting:
        sent = played.last("sync")["items"]
        bad = any(item["id"] == "b" for item in sent)
        if bad:
            played.refuse("sync", "too_large", retryable=False)
        else:
            played.synced(*[applied() | {"id": item["id"]} for item in sent])
        if played.store.waiting:
            sizes.append(len(played.last("sync")["items"]))
    assert sizes == [4, 2, 1, 2, 1, 1, 1]
    assert [json.loads(one.item)["id"] for one in played.store.rejected] == ["b"]


def test_protocol_malformed_without_id_means_the_open_message(played: Played) -> None:
    played.store.edit("task", "a", "put", {}, 0)
    played.greet()
    played.say("error", code="malformed", message="no", retryable=False)
    assert [one.code for one in played.store.rejected] == ["malformed"]


def test_protocol_refused_hello_without_id_blames_no_push(played: Played) -> None:
    played.store.edit("task", "a", "put", {}, 0)
    played.greet()
    said = played.say("error", code="invalid_message", message="app_version: too long", retryable=False)
    assert said == []
    played.synced(applied())
    assert (played.store.waiting, list(played.store.rejected)) == (0, [])


def test_protocol_retryable_error_without_id_repeats_the_push_under_its_key(played: Played) -> None:
    played.store.edit("task", "a", "put", {}, 0)
    played.greet()
    first = played.last("sync")
    played.say("error", code="rate_limited", message="no", retryable=True, retry_after_ms=250)
    played.now_s += 0.25
    [again] = played.heard(played.protocol.wake())
    assert again | {"id": ""} == first | {"id": ""}


def test_protocol_expired_cursor_pulls_from_the_beginning(played: Played) -> None:
    played.greet()
    played.page(cursor="old")
    [pull] = played.refuse("subscribe", "cursor_expired", retryable=False)
    assert (pull["type"], pull["cursor"]) == ("pull", None)
    assert not played.protocol.idle


def change(record_id: str, seq: int = 1) -> Json:
    return {
        "domain": "task", "id": record_id, "version": 1, "seq": seq, "deleted": False, "at": "", "data": {},
    }  # fmt: skip


def test_protocol_subscription_ended_late_begun_again(played: Played) -> None:
    played.greet()
    played.page(cursor="c1")
    played.page(change("kept"), change("gone", 2), cursor="c2")
    assert played.protocol.idle
    [pull] = played.refuse("subscribe", "cursor_expired", retryable=False)
    assert (pull["type"], pull["cursor"]) == ("pull", None)
    [subscribe] = played.page(change("kept"), cursor="n1")
    assert (subscribe["type"], subscribe["cursor"]) == ("subscribe", "n1")
    assert [record_id for _, record_id, _, _ in played.store.replica()] == ["kept"]
    assert played.page(cursor="n2") == []
    assert played.protocol.idle


def test_protocol_feed_unavailable_requested_later(played: Played) -> None:
    played.greet()
    played.refuse("pull", "unavailable", retryable=True, retry_after_ms=500)
    assert played.protocol.wake() == []
    played.now_s += 1
    assert kinds(played.heard(played.protocol.wake())) == ["pull"]


def test_protocol_feed_refused_is_an_error(played: Played) -> None:
    played.greet()
    with pytest.raises(ProtocolError):
        played.refuse("pull", "invalid_message", retryable=False)


def test_protocol_outcome_without_data_pulls_from_before_the_message(played: Played) -> None:
    played.greet()
    played.page(cursor="before")
    played.page(cursor="before")
    played.store.edit("task", "a", "patch", {}, 0)
    played.heard(played.protocol.wake())
    played.page(cursor="after")
    said = played.synced(applied() | {"status": "resolved", "winner": "server", "version": 5})
    assert kinds(said) == ["unsubscribe", "pull"]
    assert said[1]["cursor"] == "before"


def test_protocol_after_goodbye_sends_nothing(played: Played) -> None:
    played.greet()
    played.say("goodbye", reason="drain", retry_after_ms=1200)
    played.store.edit("task", "a", "put", {}, 0)
    assert played.protocol.wake() == []
    assert played.protocol.goodbye is not None


def test_protocol_keeps_the_rate_of_the_welcome(played: Played) -> None:
    for name in "abc":
        played.store.edit("task", name, "put", {}, 0)
    played.greet(messages_per_minute=2, items=1)
    assert played.synced(applied())[0]["type"] == "sync"
    assert played.synced(applied()) == []
    assert played.protocol.pause_s == pytest.approx(30)
    played.now_s += 31
    assert kinds(played.heard(played.protocol.wake())) == ["sync"]


def test_protocol_unknown_types_and_fields_ignored(played: Played) -> None:
    played.greet()
    assert played.say("weather", sunny=True) == []
    assert played.say("policies", policies={"task": "client_wins"}, more="") == []
    assert played.protocol.policies == {"task": "client_wins"}
    with pytest.raises(msgspec.ValidationError):
        played.say("synced", id="1")


def test_protocol_error_in_place_of_the_welcome_sets_the_wait(played: Played) -> None:
    played.say("error", code="unavailable", message="no", retryable=True, retry_after_ms=900)
    assert played.protocol.refused is not None
    assert played.protocol.refused.retry_after_ms == 900


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (None, "again"), (1001, "again"), (1006, "again"), (1012, "again"), (4503, "again"),
        (4408, "again"), (4401, "token"), (4429, "wait"), (4400, "stop"), (4403, "stop"), (4409, "once"),
    ],
)  # fmt: skip
def test_retry_close_code_has_its_remedy(code: int | None, expected: str) -> None:
    assert remedy(code) == expected


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("replaced", "once"), ("revoked", "stop"), ("expired", "token"),
        ("drain", "again"), ("restart", "again"), ("idle", "again"),
    ],
)  # fmt: skip
def test_retry_goodbye_without_close_frame_has_its_remedy(reason: str, expected: str) -> None:
    assert remedy(None, reason) == remedy(1006, reason) == expected


@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 5000)), max_size=20))
def test_backoff_wait_is_the_servers_plus_a_random_part_of_a_growing_bound(
    failures: list[tuple[float, int]],
) -> None:
    draws = iter([unit for unit, _ in failures])
    backoff = Backoff(lambda: next(draws))
    for number, (unit, asked_ms) in enumerate(failures):
        bound_s = min(60.0, 0.5 * 2.0**number)
        assert backoff.failed(asked_ms) == pytest.approx(asked_ms / 1000 + unit * bound_s)
    backoff.worked()
    draws = iter([0.5])
    assert backoff.failed() == 0.25


def test_protocol_telemetry_of_an_hour_is_the_same_until_it_is_acknowledged(played: Played) -> None:
    played.greet()
    played.page()
    played.page()
    played.store.edit("task", "a", "put", {}, played._clock_us())
    played.heard(played.protocol.wake())
    played.now_s += 0.5
    assert kinds(played.synced(applied())) == [], "the hour is not over"
    played.now_s += 3600
    [told] = played.heard(played.protocol.wake())
    assert (told["type"], told["hour"], told["counters"]) == (
        "telemetry",
        "1970-01-01T00:00:00Z",
        {"edits": 1},
    )
    [[bucket, count]] = told["histograms"]["sync_round_trip"]
    assert count == 1
    assert DURATION_BOUNDS_US[bucket - 1] < 500_000 <= DURATION_BOUNDS_US[bucket]
    assert played.heard(played.protocol.wake()) == [], "one at a time"
    played.refuse("telemetry", "overloaded", retryable=True, retry_after_ms=2000)
    assert played.heard(played.protocol.wake()) == []
    played.now_s += 2
    [again] = played.heard(played.protocol.wake())
    assert again == told | {"id": again["id"]}
    played.connect()
    played.greet()
    played.page()
    played.page()
    [again] = played.heard(played.protocol.wake())
    assert again == told | {"id": again["id"]}
    played.say("telemetry_ack", id=again["id"], replayed=True)
    assert played.heard(played.protocol.wake()) == []


def test_protocol_telemetry_counted_after_the_clock_was_set_back_has_another_key(played: Played) -> None:
    store, late_us = played.store, 3_600_000_001
    store.edit("task", "a", "put", {}, 7)
    first = store.telemetry(late_us)
    store.edit("task", "b", "put", {}, 8)
    store.edit("task", "c", "put", {}, 9)
    assert first is not None
    assert store.telemetry(late_us) == first, "it may be stored already"
    store.forget_telemetry(first.key)
    second = store.telemetry(late_us)
    assert second is not None
    assert (second.key != first.key, second.hour, second.counters) == (True, first.hour, {"edits": 2})
    assert store.telemetry(8 * 24 * late_us) is None, "the server takes nothing so old"


def test_protocol_telemetry_that_is_refused_is_deleted(played: Played) -> None:
    played.greet()
    played.page()
    played.page()
    with played.store._transaction() as run:
        count(run, 7, "crashes")
    played.now_s += 3600
    played.heard(played.protocol.wake())
    played.refuse("telemetry", "too_large", retryable=False)
    assert played.store.telemetry(played._clock_us()) is None
