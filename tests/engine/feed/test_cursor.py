"""Cursors are opaque, and bound to tenant, epoch and set of domains."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.feed.cursor import MAX_DOMAINS, Scope, expired
from engine.wire.errors import SyncError

MINE = Scope("e1", 7, ["task", "ticket"])

_names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
_domains = st.none() | st.lists(_names, min_size=1, max_size=5)
_scopes = st.tuples(st.sampled_from(["e1", "e2", "e10"]), st.sampled_from([1, 7, 71]), _domains)


def refusal(scope: Scope, cursor: str) -> str:
    """Give the code that a cursor is refused with."""
    with pytest.raises(SyncError) as caught:
        scope.seq(cursor)
    return caught.value.code


@given(scope=_scopes, seq=st.integers(0, 2**63 - 1))
def test_cursor_of_any_seq_reads_back(scope: tuple[str, int, list[str] | None], seq: int) -> None:
    assert Scope(*scope).seq(Scope(*scope).cursor(seq)) == seq


def test_cursor_null_is_the_beginning() -> None:
    assert MINE.seq(None) == 0


@given(one=_scopes, other=_scopes, seq=st.integers(0, 2**63 - 1))
def test_cursor_of_another_scope_is_expired(
    one: tuple[str, int, list[str] | None], other: tuple[str, int, list[str] | None], seq: int
) -> None:
    (_, _, mine), (_, _, theirs) = one, other
    same_domains = mine == theirs if mine is None or theirs is None else set(mine) == set(theirs)
    cursor = Scope(*one).cursor(seq)
    if one[:2] == other[:2] and same_domains:
        assert Scope(*other).seq(cursor) == seq
    else:
        assert refusal(Scope(*other), cursor) == "cursor_expired"


def test_cursor_domains_in_another_order_or_twice_fits() -> None:
    assert Scope("e1", 7, ["ticket", "task", "ticket"]).seq(MINE.cursor(5)) == 5
    assert MINE.domains == frozenset({"task", "ticket"})


@pytest.mark.parametrize(("mine", "theirs"), [(["ab"], ["a", "b"]), (None, ["all"]), (None, [""])])
def test_cursor_domains_with_similar_names_does_not_fit(mine: list[str] | None, theirs: list[str]) -> None:
    assert refusal(Scope("e1", 7, theirs), Scope("e1", 7, mine).cursor(5)) == "cursor_expired"


def test_scope_without_domains_is_refused() -> None:
    for domains in ([], ["x"] * (MAX_DOMAINS + 1), ["x" * 256], ["task", "a\0"]):
        with pytest.raises(SyncError) as caught:
            Scope("e1", 7, domains)
        assert caught.value.code == "invalid_message"
        assert caught.value.message.startswith("domains: ")
    most = [f"d{n}" for n in range(MAX_DOMAINS)]
    assert Scope("e1", 7, most).domains == frozenset(most)


def _written(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "5",
        "null",
        "ünïcode",
        "\ud800",
        "a b",
        "=",
        "a" * 100_000,
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
        _written("1.e1.7.all"),
        _written("1.e1.7.all."),
        _written("1.e1.7.all.-1"),
        _written("1.e1.7.all.+1"),
        _written("1.e1.7.all.1_0"),
        _written("1.e1.7.all. 1"),
        _written("1.e1.7.all.99999999999999999999"),
        _written("2.e1.7.all.5"),
        _written("1.e1.7.all.5.6"),
    ],
)
def test_cursor_malformed_is_an_invalid_message(cursor: str) -> None:
    assert refusal(MINE, cursor) == "invalid_message"
    assert refusal(Scope("e1", 7, None), cursor) == "invalid_message"


@given(cursor=st.text(max_size=60) | st.binary(max_size=40).map(lambda raw: base64.b64encode(raw).decode()))
def test_cursor_any_text_is_refused_or_read(cursor: str) -> None:
    assert refusal(MINE, cursor) in {"invalid_message", "cursor_expired"}


@given(seq=st.integers(0, 2**63 - 1), at=st.integers(0, 200), char=st.characters(codec="ascii"))
def test_cursor_changed_by_a_character_fits_no_other_scope(seq: int, at: int, char: str) -> None:
    cursor = MINE.cursor(seq)
    at %= len(cursor)
    changed = cursor[:at] + char + cursor[at + 1 :]
    other = Scope("e2", 7, None)
    assert refusal(other, changed) in {"invalid_message", "cursor_expired"}


def test_cursor_expired_names_the_remedy() -> None:
    assert "cursor null" in expired().message
    assert expired().code == "cursor_expired"
