"""Telemetry is taken as it is sent, or refused with the name of the field: held to a plain reading of it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.telemetry import MAX_BYTES, TelemetryRow, telemetry_row
from engine.wire.codec import JSON, MSGPACK, Codec
from engine.wire.errors import SyncError
from engine.wire.messages import Telemetry

NOW = datetime(2026, 1, 9, 3, 30, tzinfo=UTC)
NOW_US = round(NOW.timestamp() * 1_000_000)
HOUR = datetime(2026, 1, 9, 2, tzinfo=UTC)


def row(codec: Codec = JSON, **fields: Any) -> TelemetryRow:
    encode = msgspec.json.encode if codec is JSON else msgspec.msgpack.encode
    frame = encode({"type": "telemetry", "id": "1", "key": "k", "hour": HOUR.isoformat(), **fields})
    message = codec.decode(frame)
    assert isinstance(message, Telemetry)
    return telemetry_row(message, codec, 1, "phone", NOW_US)


def read(found: TelemetryRow) -> tuple[dict[str, int], dict[str, dict[int, int]]]:
    """What a row says, as one reads it."""
    histograms: dict[str, dict[int, int]] = {name: {} for name in found.histograms}
    for place, bucket, count in zip(found.places, found.buckets, found.counts, strict=True):
        histograms[found.histograms[place - 1]][bucket] = count
    return dict(zip(found.counters, found.values, strict=True)), histograms


NAMES = st.sampled_from(["a", "B.c", "z9_", "x-y", "9a", "", "a b", "ä", "a" * 64, "a" * 65, "a\0"])
NUMBERS = st.sampled_from([0, 1, 4.0, 7, 672, 673, 674, 2**31 - 1, 2**31, 2**53, 2**53 + 2, -1, 0.5, -0.0])
HISTOGRAM = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=4)


@given(
    counters=st.dictionaries(NAMES, NUMBERS, max_size=3),
    histograms=st.dictionaries(NAMES, HISTOGRAM, max_size=2),
    codec=st.sampled_from([JSON, MSGPACK]),
)
def test_telemetry_row_holds_what_was_sent_or_is_refused(
    counters: dict[str, float], histograms: dict[str, list[tuple[float, float]]], codec: Codec
) -> None:
    sums: dict[str, dict[int, int]] = {name: {} for name in histograms}
    bad = [
        name for name in (*counters, *histograms) if not re.fullmatch(r"[A-Za-z][\w.-]{0,63}", name, re.ASCII)
    ]
    bad += [str(value) for value in counters.values() if not 0 <= value <= 2**53 or value % 1]
    for name, pairs in histograms.items():
        for bucket, count in pairs:
            if not 0 <= bucket <= 673 or bucket % 1 or not 0 <= count < 2**31 or count % 1:
                bad.append(f"{bucket} {count}")
                continue
            sums[name][int(bucket)] = sums[name].get(int(bucket), 0) + int(count)
        bad += [name for count in sums[name].values() if count >= 2**31]
        sums[name] = {bucket: count for bucket, count in sums[name].items() if count}
    if bad:
        with pytest.raises(SyncError, match=r"^(counters|histograms)[.:]") as refused:
            row(codec, counters=counters, histograms=histograms)
        assert refused.value.code == "invalid_message"
    else:
        assert read(row(codec, counters=counters, histograms=histograms)) == (counters, sums)


@pytest.mark.parametrize(
    ("hour", "fault"),
    [
        (HOUR, None),
        (HOUR + timedelta(hours=2), None),
        (HOUR + timedelta(hours=3), "yet to come"),
        (NOW.replace(minute=0) - timedelta(days=7) + timedelta(hours=1), None),
        (NOW.replace(minute=0) - timedelta(days=7), "7 days ago"),
        (HOUR + timedelta(minutes=30), "the beginning of an hour in UTC"),
    ],
)
def test_telemetry_row_hours_of_a_week_are_taken(hour: datetime, fault: str | None) -> None:
    if fault is None:
        assert row(hour=hour.isoformat()).hour * 3600 == hour.timestamp()
        return
    with pytest.raises(SyncError, match=fault) as refused:
        row(hour=hour.isoformat())
    assert refused.value.code == "invalid_message"


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"counters": {f"c{number}": 1 for number in range(50)}}, None),
        ({"counters": {f"c{number}": 1 for number in range(51)}}, "too_large"),
        ({"histograms": {f"h{number}": [] for number in range(10)}}, None),
        ({"histograms": {f"h{number}": [] for number in range(11)}}, "too_large"),
        ({"histograms": {"h": [[1, 1]] * MAX_BYTES}}, "too_large"),
        ({"counters": "H4sIAAAA"}, "invalid_message"),
        ({"counters": {"c": "1"}}, "invalid_message"),
        ({"histograms": {"h": "HISTFAAAAC94nK1"}}, "invalid_message"),
        ({"histograms": {"h": [[1]]}}, "invalid_message"),
        ({"histograms": {"h": {"1": 1}}}, "invalid_message"),
    ],
    ids=range(10),
)
def test_telemetry_row_is_bounded_and_of_plain_counts(
    codec: Codec, fields: dict[str, Any], code: str | None
) -> None:
    if code is None:
        row(codec, **fields)
        return
    with pytest.raises(SyncError) as refused:
        row(codec, **fields)
    assert refused.value.code == code


def test_telemetry_row_of_the_same_contents_in_another_order_is_equal() -> None:
    one = row(counters={"a": 1, "b": 2}, histograms={"h": [[5, 1], [3, 2]]})
    other = row(counters={"b": 2.0, "a": 1}, histograms={"h": [[3, 1], [3, 1], [5, 1], [9, 0]]})
    assert one == other
    assert row(key="other").key_hash != row().key_hash


def test_telemetry_row_text_that_is_no_utf8_is_refused() -> None:
    packed = msgspec.msgpack.encode({"type": "telemetry", "id": "1", "key": "k", "hour": HOUR.isoformat()})
    frame = b"\x85" + packed[1:] + b"\xa8counters" + b"\x81\xa2\xff\xfe\x01"
    message = MSGPACK.decode(frame)
    assert isinstance(message, Telemetry)
    with pytest.raises(SyncError, match="counters"):
        telemetry_row(message, MSGPACK, 1, "phone", NOW_US)
