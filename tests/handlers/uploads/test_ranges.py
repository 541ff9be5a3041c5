"""Which part of a file a request asks for, by the words of RFC 9110."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.uploads.ranges import Part, wanted_part

TAG = '"abc"'


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ("bytes=0-0", Part(0, 1)),
        ("bytes=0-9", Part(0, 10)),
        ("bytes=3-", Part(3, 7)),
        ("bytes=9-9", Part(9, 1)),
        ("bytes=3-99", Part(3, 7)),
        (f"bytes=3-{'9' * 5000}", Part(3, 7)),
        ("bytes=-4", Part(6, 4)),
        ("bytes=-99", Part(0, 10)),
        (f"bytes=-{'9' * 5000}", Part(0, 10)),
        ("BYTES = 1-2 ", Part(1, 2)),
        ("bytes=10-", "unsatisfiable"),
        ("bytes=10-11", "unsatisfiable"),
        (f"bytes={'9' * 5000}-", "unsatisfiable"),
        ("bytes=-0", "unsatisfiable"),
        ("bytes=5-4", "whole"),
        ("bytes=-", "whole"),
        ("bytes=", "whole"),
        ("bytes=0-1,3-4", "whole"),
        ("bytes=a-b", "whole"),
        ("bytes=+1-2", "whole"),
        ("bytes=\u0661-\u0662", "whole"),
        ("items=0-1", "whole"),
        ("", "whole"),
        ("bytes=1-2,", Part(1, 2)),
        ("bytes=, 1-2 ,,", Part(1, 2)),
        ("bytes=1-2, bytes=1-2", "whole"),
    ],
)
def test_wanted_part_ten_bytes(wanted: str, part: Part | str) -> None:
    assert wanted_part(wanted, None, TAG, 10) == part


@pytest.mark.parametrize(
    ("wanted", "part"), [("bytes=0-", "unsatisfiable"), ("bytes=-5", "whole"), ("bytes=-0", "unsatisfiable")]
)
def test_wanted_part_empty_file(wanted: str, part: str) -> None:
    assert wanted_part(wanted, None, TAG, 0) == part


@pytest.mark.parametrize(
    ("only_if", "holds"),
    [
        (TAG, True),
        (f" {TAG} ", True),
        ('"other"', False),
        ('W/"abc"', False),
        ("Tue, 02 Jan 2024 00:00:00 GMT", False),
        ("abc", False),
    ],
)
def test_wanted_part_if_range_must_match(only_if: str, holds: bool) -> None:
    assert wanted_part("bytes=1-2", only_if, TAG, 10) == (Part(1, 2) if holds else "whole")


@given(
    st.text(alphabet="bytes=0123456789-, ", max_size=20)
    | st.builds("bytes={}-{}".format, st.integers(0), st.integers(0)),
    st.integers(0, 30),
)
def test_wanted_part_always_within_the_file(wanted: str, size_bytes: int) -> None:
    part = wanted_part(wanted, None, TAG, size_bytes)
    if isinstance(part, Part):
        assert 0 <= part.first_byte < part.first_byte + part.count_bytes <= size_bytes
