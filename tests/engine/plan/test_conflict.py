"""Settling one conflict: every policy, with what is lost and what is kept."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.domains import Domain, DomainPolicy, Fallback, Policy
from engine.model.merge import FieldVersions, same_value
from engine.plan.conflict import ClientChange, ServerRecord, client_side, decide
from engine.wire.messages import Op

Json = dict[str, Any]

DOMAIN = Domain(server_owned=("status", "level"))
SERVER: Json = {"status": "OPEN", "level": 2, "title": "server", "note": "kept"}


def side(
    op: Op = "put",
    fields: Json | None = None,
    *,
    base: int = 1,
    at_us: int = 100,
    changed: tuple[str, ...] | None = None,
) -> ClientChange:
    """Make a client's change."""
    return ClientChange(op, fields, base, at_us, changed)


def standing(
    fields: Json | None = SERVER,
    *,
    at_us: int = 100,
    since: int = 0,
    last: Json | None = None,
    **changed: tuple[int, int],
) -> ServerRecord:
    """Make a server's record; ``changed`` gives (version, at_us) of fields."""
    return ServerRecord(fields, at_us, FieldVersions(since, at_us, dict(changed)), last=last)


def outcome(
    policy: Policy, server: ServerRecord, client: ClientChange, fallback: Fallback = "most_recent_wins"
) -> tuple[str, Json | None, int] | None:
    """Settle, and give (winner, record, time), or None where it is held."""
    settled = decide(DomainPolicy(policy, fallback), DOMAIN, server, client)
    return None if settled is None else (settled.winner, settled.fields, settled.at_us)


PUT = side(fields={"title": "client", "status": "DONE"})
PATCH = side("patch", {"title": "client", "note": None})
DELETE = side("delete")
PATCHED = {"status": "OPEN", "level": 2, "title": "client"}


# -- one side wins whole ------------------------------------------------------------------------


@pytest.mark.parametrize("client", [PUT, PATCH, DELETE])
def test_decide_server_wins_keeps_the_record(client: ClientChange) -> None:
    assert outcome("server_wins", standing(), client) == ("server", SERVER, 100)
    assert outcome("server_wins", standing(None), client) == ("server", None, 100)


@pytest.mark.parametrize("client", [PUT, PATCH, DELETE])
def test_decide_manual_holds(client: ClientChange) -> None:
    assert outcome("manual", standing(), client) is None


def test_decide_client_wins_patch_applies_to_the_servers_record() -> None:
    assert outcome("client_wins", standing(at_us=999), PUT) == ("client", PUT.fields, 100)
    assert outcome("client_wins", standing(at_us=999), PATCH) == ("client", PATCHED, 100)
    assert outcome("client_wins", standing(at_us=999), DELETE) == ("client", None, 100)


#: Policy and fallback, and whether a later change wins over a tombstone by them.
OVER_TOMBSTONES: list[tuple[Policy, Fallback, bool]] = [
    ("client_wins", "manual", True),
    ("most_recent_wins", "manual", True),
    ("field_merge", "client_wins", True),
    ("field_merge", "most_recent_wins", True),
    ("server_wins", "manual", False),
    ("preserve_escalation", "manual", False),
    ("field_merge", "server_wins", False),
    ("field_merge", "preserve_escalation", False),
]


@pytest.mark.parametrize(("policy", "fallback", "wins"), OVER_TOMBSTONES)
def test_decide_patch_over_a_tombstone_applies_to_last_data_or_is_held(
    policy: Policy, fallback: Fallback, wins: bool
) -> None:
    for last, client, won in (
        (SERVER, PATCH, PATCHED),
        ({}, PATCH, {"title": "client"}),
        (SERVER, PUT, PUT.fields),
        (None, PUT, PUT.fields),
    ):
        settled = outcome(policy, standing(None, at_us=99, last=last), client, fallback)
        assert settled == (("client", won, 100) if wins else ("server", None, 99))
    unknown = outcome(policy, standing(None, at_us=99), PATCH, fallback)
    assert unknown == (None if wins else ("server", None, 99))


@pytest.mark.parametrize(("client_at_us", "winner"), [(99, "server"), (100, "server"), (101, "client")])
@pytest.mark.parametrize("op", ["put", "delete"])
def test_decide_most_recent_wins_tie_goes_to_the_server(op: Op, client_at_us: int, winner: str) -> None:
    client = side(op, {"title": "client"} if op == "put" else None, at_us=client_at_us)
    settled = outcome("most_recent_wins", standing(at_us=100), client)
    expected = (client.fields, client_at_us) if winner == "client" else (SERVER, 100)
    assert settled == (winner, *expected)


# -- preserve_escalation --------------------------------------------------------------------------


def test_decide_preserve_escalation_server_owned_fields_are_kept() -> None:
    client = side(fields={"title": "client", "status": "DONE", "level": 0, "more": 1}, at_us=1)
    expected = {"title": "client", "status": "OPEN", "level": 2, "more": 1}
    assert outcome("preserve_escalation", standing(at_us=999), client) == ("merged", expected, 1)


def test_decide_preserve_escalation_missing_field_is_not_added() -> None:
    client = side(fields={"title": "client", "status": "DONE"})
    settled = outcome("preserve_escalation", standing({"title": "server"}), client)
    assert settled == ("merged", {"title": "client"}, 100)


def test_decide_merge_equal_to_a_side_names_that_side() -> None:
    same_status = side(fields={"title": "client", "status": "OPEN", "level": 2})
    settled = outcome("preserve_escalation", standing(), same_status)
    assert settled == ("client", same_status.fields, 100)
    only_status = side("patch", {"status": "DONE"})
    assert outcome("preserve_escalation", standing(), only_status) == ("server", SERVER, 100)


def test_decide_preserve_escalation_deletes_fall_to_the_server() -> None:
    assert outcome("preserve_escalation", standing(), DELETE) == ("server", SERVER, 100)
    for client in (PUT, PATCH):
        assert outcome("preserve_escalation", standing(None), client) == ("server", None, 100)


# -- field_merge ----------------------------------------------------------------------------------


def test_decide_field_merge_field_of_one_side_takes_it() -> None:
    server = standing(title=(3, 50), status=(1, 10), level=(1, 10), note=(1, 10))
    for client in (
        side("patch", {"note": "client"}, base=2, at_us=70),
        side("put", SERVER | {"note": "client"}, base=2, at_us=70, changed=("note",)),
    ):
        settled = outcome("field_merge", server, client)
        assert settled == ("client", SERVER | {"note": "client"}, 100)


def test_decide_field_merge_put_changes_only_named_fields() -> None:
    server = standing(title=(1, 10), note=(1, 10))
    client = side("put", {"title": "client", "note": "older"}, changed=("title",))
    assert outcome("field_merge", server, client) == ("merged", SERVER | {"title": "client"}, 100)
    nothing = side("put", {"title": "client"}, changed=())
    assert outcome("field_merge", server, nothing) == ("server", SERVER, 100)


def test_decide_field_merge_field_may_be_removed() -> None:
    server = standing(note=(1, 10))
    removed = {name: value for name, value in SERVER.items() if name != "note"}
    for client in (
        side("patch", {"note": None}),
        side("put", removed, changed=("note",)),
    ):
        assert outcome("field_merge", server, client) == ("client", removed, 100)


@pytest.mark.parametrize(("at_us", "winner"), [(49, "server"), (50, "server"), (51, "client")])
def test_decide_field_merge_clash_compares_the_fields_time(at_us: int, winner: str) -> None:
    server = standing(at_us=100, title=(3, 50))
    settled = outcome("field_merge", server, side("patch", {"title": "client"}, base=2, at_us=at_us))
    expected = SERVER | {"title": "client"} if winner == "client" else SERVER
    assert settled == (winner, expected, 100)


def test_decide_field_merge_time_is_the_later_one() -> None:
    server = standing(at_us=100, title=(3, 50))
    for at_us, then_us in ((60, 100), (100, 100), (140, 140)):
        settled = outcome("field_merge", server, side("patch", {"title": "client"}, base=2, at_us=at_us))
        assert settled is not None
        assert settled[2] == then_us


def test_decide_field_merge_equal_values_are_no_clash() -> None:
    server = standing(title=(3, 50), note=(1, 10))
    client = side("patch", {"title": "server", "note": "client"}, base=2, at_us=1)
    for fallback in get_args(Fallback):
        settled = outcome("field_merge", server, client, fallback)
        assert settled == ("client", SERVER | {"note": "client"}, 100)


@pytest.mark.parametrize(
    ("fallback", "expected"),
    [
        ("server_wins", ("server", SERVER, 200)),
        ("client_wins", ("client", SERVER | {"title": "client", "status": "DONE"}, 200)),
        ("preserve_escalation", ("merged", SERVER | {"title": "client"}, 200)),
        ("most_recent_wins", ("merged", SERVER | {"status": "DONE"}, 200)),
        ("manual", None),
    ],
)
def test_decide_field_merge_clash_falls_to_the_fallback(fallback: Fallback, expected: Any) -> None:
    server = standing(at_us=200, title=(3, 150), status=(3, 50))
    client = side("patch", {"title": "client", "status": "DONE"}, base=2)
    assert outcome("field_merge", server, client, fallback) == expected


@pytest.mark.parametrize(
    ("server", "client"),
    [(SERVER, side("put", {"title": "client"})), (SERVER, DELETE), (None, PATCH), (None, PUT)],
)
@pytest.mark.parametrize("fallback", get_args(Fallback))
def test_decide_field_merge_unmergeable_falls_whole_to_the_fallback(
    server: Json | None, client: ClientChange, fallback: Fallback
) -> None:
    for at_us in (1, 500):
        there = standing(server, at_us=at_us)
        assert outcome("field_merge", there, client, fallback) == outcome(fallback, there, client)


def test_decide_field_merge_put_on_a_tombstone_is_no_merge() -> None:
    client = side("put", {"title": "client"}, changed=("title",), at_us=500)
    assert outcome("field_merge", standing(None), client) == ("client", {"title": "client"}, 500)
    assert outcome("field_merge", standing(None, at_us=500), client) == ("server", None, 500)


# -- whatever meets -------------------------------------------------------------------------------


_values = st.none() | st.booleans() | st.sampled_from([0, 1, 1.0, "a", {"x": 1}, {"x": None}, [1]])
_data = st.dictionaries(st.sampled_from(["status", "level", "a", "b"]), _values)
_sides = st.builds(
    ClientChange,
    op=st.sampled_from(["put", "patch"]),
    fields=_data,
    base=st.integers(0, 4),
    at_us=st.integers(0, 5),
    changed=st.none() | st.lists(st.sampled_from(["status", "a", "c"]), max_size=3).map(tuple),
) | st.builds(
    ClientChange,
    op=st.just("delete"),
    fields=st.none(),
    base=st.integers(0, 4),
    at_us=st.integers(0, 5),
    changed=st.none(),
)
_versions = st.builds(
    FieldVersions,
    since=st.integers(0, 3),
    since_at_us=st.integers(0, 5),
    changed=st.dictionaries(
        st.sampled_from(["status", "level", "a", "b"]), st.tuples(st.integers(1, 4), st.integers(0, 5))
    ),
)
_standings = st.builds(
    ServerRecord,
    fields=st.none() | _data,
    at_us=st.integers(0, 5),
    versions=_versions,
    last=st.none() | _data,
)
_policies = st.builds(DomainPolicy, st.sampled_from(get_args(Policy)), st.sampled_from(get_args(Fallback)))


@given(policy=_policies, server=_standings, client=_sides)
def test_decide_named_winner_is_the_outcome(
    policy: DomainPolicy, server: ServerRecord, client: ClientChange
) -> None:
    before = repr((server, client))
    settled = decide(policy, DOMAIN, server, client)
    assert repr((server, client)) == before, "neither side is changed"
    if settled is None:
        unknown = client.op == "patch" and server.fields is None and server.last is None
        assert unknown or "manual" in (policy.policy, policy.fallback)
        return
    patched = server.last if server.fields is None else server.fields
    wanted = client_side(client.op, client.fields, patched)
    if settled.winner == "server":
        assert same_value(settled.fields, server.fields)
        assert settled.at_us == server.at_us
    elif settled.winner == "client":
        assert same_value(settled.fields, wanted)
        assert settled.at_us >= client.at_us
    else:
        assert not same_value(settled.fields, server.fields)
        assert not same_value(settled.fields, wanted)
