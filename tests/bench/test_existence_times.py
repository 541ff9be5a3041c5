"""The ratio of medians, and ids that nobody has."""

from __future__ import annotations

import random

from bench.tools.existence_times import Times, _nothing


def test_ratio_of_equal_times_has_one_in_its_interval() -> None:
    draw = random.Random(7)
    times = Times(*([draw.gauss(1.0, 0.2) for _ in range(300)] for _ in "12"))
    ratio = times.ratio()
    assert ratio.low < 1 < ratio.high
    assert ratio.low <= ratio.value <= ratio.high


def test_ratio_of_slower_answers_is_above_one() -> None:
    draw = random.Random(7)
    times = Times([draw.gauss(1.3, 0.2) for _ in range(300)], [draw.gauss(1.0, 0.2) for _ in range(300)])
    ratio = times.ratio()
    assert 1 < ratio.low <= ratio.value


def test_nothing_is_another_id_of_the_same_form() -> None:
    name = "0123456789abcdef" * 2
    other = _nothing(name)
    assert other != name
    assert len(other) == len(name)
    assert set(other) <= set("0123456789abcdef")
