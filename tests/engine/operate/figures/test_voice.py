"""Voice verifications: which events make a row, and what rows add up to."""

from __future__ import annotations

import json
import math
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.operate.figures.voice import Result, VoiceEvent, verification, voice_figures

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


def event(**data: object) -> VoiceEvent:
    return VoiceEvent("e1", 5, 6, 7, "phone", json.dumps(data))


def test_verification_of_an_event_has_its_keys_and_one_value() -> None:
    row = verification(
        event(verification_id="v1", verified=True, confidence_score=0.9, quality_score=1, user_id="u1")
    )
    assert row == ("v1", "phone", "u1", 7, Result(True, 0.9, 1.0, None))


@pytest.mark.parametrize(
    "data",
    [
        {"verified": True},
        {"verification_id": "", "verified": True},
        {"verification_id": "a\0", "verified": True},
        {"verification_id": "x" * 501, "verified": True},
        {"verification_id": "\ud800", "verified": True},
        {"verification_id": ["v"], "verified": True},
        {"verification_id": True, "verified": True},
        {"verification_id": "v", "verified": "yes"},
        {"verification_id": "v", "verified": None},
    ],
)
def test_verification_of_an_event_without_id_or_result_is_none(data: dict[str, object]) -> None:
    assert verification(event(**data)) is None


@given(
    st.fixed_dictionaries(
        {"verification_id": _JSON, "verified": st.booleans()},
        optional=dict.fromkeys(("confidence_score", "quality_score", "processing_time_ms", "user_id"), _JSON),
    )
)
def test_verification_takes_whatever_devices_send(data: dict[str, object]) -> None:
    row = verification(event(**data))
    if row is not None:
        assert isinstance(row.verification_id, str)
        assert "\0" not in row.verification_id + (row.user_id or "")
        numbers = (row.result.confidence_score, row.result.quality_score, row.result.processing_time_ms)
        assert all(number is None or math.isfinite(number) for number in numbers)


def test_voice_figures_are_of_what_was_told() -> None:
    results = [
        Result(True, 0.9, None, 100.0),
        Result(False, 0.5, None, 300.0),
        Result(True, None, None, -1.0),
        Result(True, None, None, 1e300),
    ]
    found = voice_figures(None, "phone", results)
    assert (found.verifications, found.verified, found.verified_rate) == (4, 3, 0.75)
    assert found.confidence_score == pytest.approx(0.7)
    assert found.quality_score is None
    assert found.avg_processing_ms == (400.0 + 86_400_000.0) / 4
    assert found.p95_processing_ms is not None


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
@example([sys.float_info.max] * 3)
def test_voice_figures_of_any_scores_are_finite(scores: list[float]) -> None:
    found = voice_figures(None, None, [Result(True, score, score, score) for score in scores])
    assert found.confidence_score is not None
    assert math.isfinite(found.confidence_score)
