"""The hosts of a DSN, split by libpq's rules, and the order to try them in."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg2.extensions import make_dsn, parse_dsn

from engine.runtime.ports import StoreError
from storage.postgres.blocking import connected
from storage.postgres.display_names import dsn_without_secrets
from storage.postgres.hosts import HostOrder, hosts_of, order_of, reordered

Parts = dict[str, str]

#: A DSN, and host by host what of it may differ.
SPLIT: dict[str, list[Parts]] = {
    "": [{}],
    "dbname=db": [{}],
    "postgresql:///db": [{}],
    "host=h1 port=6432": [{"host": "h1", "port": "6432"}],
    "host=/run/pg,/srv/pg port=5432,5433": [
        {"host": "/run/pg", "port": "5432"},
        {"host": "/srv/pg", "port": "5433"},
    ],
    "host=h1,h2": [{"host": "h1"}, {"host": "h2"}],
    "host=h1,h2 port=6432": [{"host": "h1", "port": "6432"}, {"host": "h2", "port": "6432"}],
    "postgresql://h1:1,h2:2,h3/db": [
        {"host": "h1", "port": "1"},
        {"host": "h2", "port": "2"},
        {"host": "h3", "port": ""},
    ],
    "postgresql://[::1]:1,[fe80::2]/db": [
        {"host": "::1", "port": "1"},
        {"host": "fe80::2", "port": ""},
    ],
    "postgresql://%2Frun%2Fpg,h2/db": [{"host": "/run/pg", "port": ""}, {"host": "h2", "port": ""}],
    "hostaddr=10.0.0.1,10.0.0.2": [{"hostaddr": "10.0.0.1"}, {"hostaddr": "10.0.0.2"}],
    "host=h1,h2 hostaddr=10.0.0.1,10.0.0.2 port=1,2": [
        {"host": "h1", "hostaddr": "10.0.0.1", "port": "1"},
        {"host": "h2", "hostaddr": "10.0.0.2", "port": "2"},
    ],
    "host=h1,h2 hostaddr=10.0.0.1,": [
        {"host": "h1", "hostaddr": "10.0.0.1"},
        {"host": "h2", "hostaddr": ""},
    ],
}


@pytest.mark.parametrize("dsn", SPLIT)
def test_hosts_of_list_gives_each_host_its_own_parameters(dsn: str) -> None:
    own = [
        {name: value for name, value in parse_dsn(host.dsn).items() if name in ("host", "hostaddr", "port")}
        for host in hosts_of(dsn)
    ]
    assert own == SPLIT[dsn]


def test_hosts_of_keeps_common_parameters_and_drops_those_of_the_list() -> None:
    dsn = (
        "postgresql://u%40x:p%2C%27%20%5C@h1,h2/d%2Fb?sslmode=verify-full&options=-c%20jit%3Doff"
        "&target_session_attrs=read-write&load_balance_hosts=random"
    )
    common = {
        "user": "u@x",
        "password": "p,' \\",
        "dbname": "d/b",
        "sslmode": "verify-full",
        "options": "-c jit=off",
    }
    assert [parse_dsn(host.dsn) for host in hosts_of(dsn)] == [
        common | {"host": "h1", "port": ""},
        common | {"host": "h2", "port": ""},
    ]


@pytest.mark.parametrize(
    ("dsn", "names"),
    [
        ("host=h1,/run/pg,@abstract,", ["h1", "", "", ""]),
        ("host=h1,h2 hostaddr=10.0.0.1,", ["", "h2"]),
        ("hostaddr=10.0.0.1", [""]),
    ],
)
def test_hosts_of_only_name_without_address_is_looked_up(dsn: str, names: list[str]) -> None:
    assert [host.name for host in hosts_of(dsn)] == names


def test_host_name_looked_up_is_the_one_a_certificate_must_bear(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::1", 0, 0, 0))]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: found)
    (host,) = hosts_of("postgresql://db.example/x?sslmode=verify-full")
    (address,) = host.addresses_now(one_of_several=False)
    assert parse_dsn(address.dsn) == {
        "host": "db.example",
        "hostaddr": "fd00::1",
        "dbname": "x",
        "sslmode": "verify-full",
    }


@pytest.mark.parametrize(
    "dsn",
    [
        "host=h1,h2,h3 port=1,2",
        "host=h1,h2 hostaddr=10.0.0.1",
        "postgresql://h1/x?nonsense=1",
        "no dsn at all",
    ],
)
def test_hosts_of_invalid_dsn_is_refused_without_its_password(dsn: str) -> None:
    with pytest.raises(StoreError, match=r"^postgres\.dsn .*: \w") as refused:
        hosts_of(dsn)
    assert dsn not in str(refused.value)


_WORD = st.text("abcz019.-", min_size=1, max_size=8)
_VALUE = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1, max_size=8)


@given(st.lists(st.tuples(_WORD, st.integers(1, 65535)), min_size=1, max_size=5), _VALUE, st.booleans())
def test_hosts_of_any_number_of_hosts_matches_libpq(
    hosts: list[tuple[str, int]], password: str, one_port: bool
) -> None:
    ports = [hosts[0][1] if one_port else port for _, port in hosts]
    dsn = make_dsn(
        host=",".join(name for name, _ in hosts),
        port=str(ports[0]) if one_port else ",".join(map(str, ports)),
        password=password,
    )
    assert [parse_dsn(host.dsn) for host in hosts_of(dsn)] == [
        {"host": name, "port": str(port), "password": password}
        for (name, _), port in zip(hosts, ports, strict=True)
    ]


@given(st.lists(st.integers(0, 4), max_size=20))
def test_host_order_host_that_failed_longest_ago_is_first(failures: list[int]) -> None:
    hosts = hosts_of("host=a,b,c,d,e")
    order = HostOrder(hosts)
    for failed in failures:
        order.failed(hosts[failed])
    last = {
        host: max((at for at, of in enumerate(failures) if hosts[of] is host), default=-1) for host in hosts
    }
    assert order.now() == sorted(hosts, key=last.__getitem__)


@given(st.integers(0, 4))
def test_dsn_reordered_has_the_same_hosts_behind_each_other(failed: int) -> None:
    dsn = make_dsn(host="a,b,/c,d,e", port="1,2,,4,5", password="p ,'", target_session_attrs="read-write")
    order = order_of(dsn)
    order.failed(order.now()[failed])
    again = reordered(dsn)
    assert [host.dsn for host in hosts_of(again)] == [host.dsn for host in order.now()]
    assert parse_dsn(again)["target_session_attrs"] == "read-write"
    assert reordered("host=a port=1") == "host=a port=1"


@pytest.mark.parametrize(
    ("dsn", "told"),
    [
        ("postgresql://u:p@ssword@db.invalid/x", r"is known for \*\*\*@db.invalid: .*percent-encoded"),
        ("postgresql://u:pass/word@db.invalid/x", "a port that is no number: .*percent-encoded"),
        ("postgresql://u:50%@db.invalid/x", "neither a URI nor .*percent-encoded"),
    ],
)
def test_host_unknown_unencoded_password_is_hinted_and_not_shown(dsn: str, told: str) -> None:
    with pytest.raises(StoreError, match=told) as refused, connected(dsn):
        pass
    assert "p@ss" not in str(refused.value)
    assert "pass/" not in str(refused.value)
    assert "ssword" not in dsn_without_secrets(dsn).replace("password", "")


def test_host_unknown_plain_name_gives_no_hint_of_a_password() -> None:
    assert hosts_of("host=nowhere")[0].unknown == "no address is known for nowhere"
