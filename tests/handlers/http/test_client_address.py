"""Whose address the log names: a proxy's word counts where the proxy is trusted, and nobody else's."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_network

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from engine.wire.errors import SyncError
from handlers.http import client_address as peer_module
from handlers.http.client_address import RefusedHandshakeLog, client_address, networks, request_seconds

LOOPBACK = networks(["127.0.0.1", "::1"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.7", [], "203.0.113.7"),
        ("203.0.113.7", ["198.51.100.1"], "203.0.113.7"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", [""], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["198.51.100.1, 203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["198.51.100.1", "203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["198.51.100.1,::1"], "198.51.100.1"),
        ("::1", ["2001:db8::7"], "2001:db8::7"),
        ("::ffff:127.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["::ffff:203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["203.0.113.7, unknown"], "127.0.0.1"),
        ("127.0.0.1", ["unknown, 203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["203.0.113.7:4711"], "203.0.113.7"),
        ("127.0.0.1", ["[2001:db8::7]:4711"], "2001:db8::7"),
        ("127.0.0.1", ["[2001:db8::7]"], "2001:db8::7"),
        ("127.0.0.1", ["203.0.113.7:port"], "127.0.0.1"),
        ("127.0.0.1", ["127.0.0.1, ::1"], "127.0.0.1"),
        (None, ["203.0.113.7"], None),
        ("", ["203.0.113.7"], None),
    ],
)
def test_client_address_behind_a_local_proxy_is_the_forwarded_one(
    peer: str | None, forwarded: list[str], client: str
) -> None:
    assert client_address(peer, forwarded, LOOPBACK) == client


@pytest.mark.parametrize(
    ("peer", "said", "seconds"),
    [
        ("127.0.0.1", ["6.250"], 6.25),
        ("::ffff:127.0.0.1", ["0.000"], 0.0),
        ("127.0.0.1", [], 0.0),
        ("203.0.113.7", ["6.250"], 0.0),
        ("", ["6.250"], 0.0),
        (None, ["6.250"], 0.0),
        ("127.0.0.1", ["6.250", "1.000"], 0.0),
        *(("127.0.0.1", [said], 0.0) for said in ("", "-1", "nan", "inf", "1e3", "6,2", " 6", "\u0663")),
    ],
)
def test_client_address_request_seconds_are_believed_of_a_trusted_proxy_alone(
    peer: str | None, said: list[str], seconds: float
) -> None:
    assert request_seconds(peer, said, LOOPBACK) == seconds


def test_client_address_without_a_trusted_proxy_is_the_peer() -> None:
    assert client_address("127.0.0.1", ["203.0.113.7"], ()) == "127.0.0.1"


ADDRESSES = st.sampled_from(["10.0.0.1", "10.1.2.3", "192.0.2.1", "192.0.2.2", "2001:db8::1", "fd00::1"])
TRUSTED = ["10.0.0.0/8", "fd00::/8"]


@given(st.lists(ADDRESSES, min_size=1, max_size=6), st.data())
def test_client_address_is_the_last_untrusted_of_the_chain(chain: list[str], data: st.DataObject) -> None:
    *forwarded, peer = chain
    cuts = data.draw(st.lists(st.booleans(), min_size=len(forwarded), max_size=len(forwarded)))
    headers: list[str] = []
    for address, begins in zip(forwarded, cuts, strict=True):
        if begins or not headers:
            headers.append(address)
        else:
            headers[-1] += f", {address}"
    ours = [ip_network(text) for text in TRUSTED]
    strangers = [one for one in chain if not any(ip_address(one) in network for network in ours)]
    expected = strangers[-1] if strangers else chain[0]
    assert client_address(peer, headers, networks(TRUSTED)) == expected


@given(st.text(), st.lists(st.text(max_size=40), max_size=4))
def test_client_address_of_any_header_is_an_address(peer: str, forwarded: list[str]) -> None:
    named = client_address(peer, forwarded, networks(["0.0.0.0/0", "::/0"]))
    assert named is None or str(ip_address(named)) == named


@given(st.lists(st.text(max_size=40), max_size=4))
def test_client_address_cannot_be_forged_by_an_untrusted_peer(forwarded: list[str]) -> None:
    assert client_address("192.0.2.1", forwarded, networks(TRUSTED)) == "192.0.2.1"


def _request(forwarded_for: str) -> web.Request:
    loop = asyncio.new_event_loop()
    try:
        return make_mocked_request("GET", "/v1/sync", headers={"X-Forwarded-For": forwarded_for}, loop=loop)
    finally:
        loop.close()


class _Log:
    def __init__(self) -> None:
        self.lines: list[dict[str, object]] = []

    def info(self, event: str, **fields: object) -> None:
        self.lines.append({"event": event, **fields})


def test_refused_handshake_log_writes_one_line_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    log = _Log()
    monkeypatch.setattr(peer_module, "_log", log)
    refusals = RefusedHandshakeLog(LOOPBACK)
    request, error = _request("203.0.113.7"), SyncError("unauthenticated", "the token has expired")
    for now_s in (*[1000.0] * 100, 1001.0, 1001.5, 1002.0):
        refusals.log(request, error, now_s)
    lines = log.lines
    assert len(lines) == 62
    assert {line["event"] for line in lines} == {"handshake_refused"}
    assert [line["unlogged"] for line in lines] == [0] * 60 + [40, 1]
    assert (lines[0]["code"], lines[0]["message"]) == ("unauthenticated", "the token has expired")
