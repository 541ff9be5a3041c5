"""Every input that a search found, and the seeds, on the decoders as they are installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
#: More would make each clone larger. What is worth keeping is what reaches something new.
MOST_BYTES = 200_000


@pytest.mark.parametrize("name", TARGETS)
def test_target_every_known_input_is_decoded_or_refused(name: str) -> None:
    known = sorted((CORPUS / name).iterdir())
    assert known
    for path in known:
        try:
            TARGETS[name].search(path.read_bytes())
        except BaseException:
            sys.stderr.write(f"the input is {path}\n")
            raise


def test_corpus_is_small_and_of_targets_that_exist() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < MOST_BYTES


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_target_changed_known_input_is_decoded_or_refused(name: str, data: st.DataObject) -> None:
    known = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    one = data.draw(st.sampled_from(known))
    other = data.draw(st.sampled_from(known) | st.binary(max_size=40))
    at, to = data.draw(st.integers(0, len(one))), data.draw(st.integers(0, len(one)))
    TARGETS[name].search(one[:at] + other + one[to:])
