"""The hosts that a DSN names, the addresses of each, and which of them to try first.

libpq goes through such a list by itself, but begins at its head each time: every connection of every command
would wait for a first host that is silent.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec
import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

from engine.runtime.ports import StoreError

#: Of the list as a whole: which of its hosts is the primary is asked by whoever connects.
_OF_THE_LIST: Final = ("target_session_attrs", "load_balance_hosts")
#: What each host of a list has of its own.
_OF_A_HOST: Final = ("host", "hostaddr", "port")


#: What of a URI is taken for the host where the password is not encoded.
_ENCODE_IT: Final = (
    "in the URI of postgres.dsn, characters such as @ : / ? # and % of a password are percent-encoded"
    " (@ is %40, / is %2F)"
)
#: How long a connection may take until it can be used.
CONNECT_S: Final = 5.0
#: Where there are others to try: a host that is gone mostly refuses nothing, it is silent.
CONNECT_ONE_OF_SEVERAL_S: Final = 2.0


class Place(msgspec.Struct, frozen=True):
    """One address of one host. ``name`` is for people, ``patience_s`` how long connecting may take."""

    dsn: str
    name: str
    patience_s: float


class Host(msgspec.Struct, frozen=True):
    """One host. ``name`` is empty where there is nothing to look up: a socket's path, an address."""

    dsn: str
    name: str
    label: str = ""

    @property
    def unknown(self) -> str:
        """The sentence on a name that stands for no address; what may be of a password is not shown."""
        *_, after = self.name.rpartition("@")
        if after == self.name:
            return f"no address is known for {self.name}"
        return f"no address is known for ***@{after}: {_ENCODE_IT}"

    async def places(self, *, one_of_several: bool) -> list[Place]:
        """Give a place for each address that the name stands for, none if it is not known.

        Left to libpq, the look-up would hold up the event loop.
        """
        found: list[Any] = []
        if self.name:
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(_patience_s(one_of_several=one_of_several)):
                    found = await loop.getaddrinfo(self.name, None, type=socket.SOCK_STREAM)
            except (OSError, TimeoutError, ValueError):  # a name may be none of the domain name system's
                return []
        return self._at(found, one_of_several=one_of_several)

    def places_now(self, *, one_of_several: bool) -> list[Place]:
        """Do as ``places`` where no event loop is held up, for as long as the system's resolver takes."""
        found: list[Any] = []
        if self.name:
            try:
                found = socket.getaddrinfo(self.name, None, type=socket.SOCK_STREAM)
            except (OSError, ValueError):
                return []
        return self._at(found, one_of_several=one_of_several)

    def _at(self, found: list[Any], *, one_of_several: bool) -> list[Place]:
        if not self.name:
            return [Place(self.dsn, self.label, _patience_s(one_of_several=one_of_several))]
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        patience_s = _patience_s(one_of_several=one_of_several or len(addresses) > 1)
        return [
            Place(str(make_dsn(self.dsn, hostaddr=address)), self._label_at(address), patience_s)
            for address in addresses
        ]

    def _label_at(self, address: str) -> str:
        return self.label if address == self.name else f"{self.label} ({address})"


def _patience_s(*, one_of_several: bool) -> float:
    return CONNECT_ONE_OF_SEVERAL_S if one_of_several else CONNECT_S


def hosts_of(dsn: str) -> list[Host]:
    """Split a DSN, a URI or libpq's keywords, by the rules of libpq. Raises StoreError if it breaks them."""
    try:
        common = parse_dsn(dsn)
    except psycopg2.ProgrammingError:
        raise StoreError(
            "postgres.dsn is neither a URI nor libpq's keywords: write it as"
            f" postgresql://user:password@host:port/database; {_ENCODE_IT}"
        ) from None
    for name in _OF_THE_LIST:
        common.pop(name, None)
    names, addresses, ports = (_listed(common.pop(part, "")) for part in _OF_A_HOST)
    if not all(port.isdecimal() for port in ports if port):
        raise StoreError(f"postgres.dsn names a port that is no number: {_ENCODE_IT}")
    count = len(addresses or names or [""])
    parts = {
        "host": _one_each("host", names, count),
        "hostaddr": _one_each("hostaddr", addresses, count),
        "port": _one_each("port", ports * count if len(ports) == 1 else ports, count),
    }
    found = []
    for index in range(count):
        own = {part: values[index] for part, values in parts.items() if values}
        name = own.get("host", "")
        looked_up = bool(name) and name[0] not in "/@" and not own.get("hostaddr")
        label = ":".join(filter(None, (name or own.get("hostaddr", ""), own.get("port", ""))))
        own_dsn = str(make_dsn(**common, **own))
        found.append(Host(own_dsn, name if looked_up else "", label or "the default host"))
    return found


def _listed(value: str) -> list[str]:
    return value.split(",") if value else []


def _one_each(part: str, values: list[str], count: int) -> list[str]:
    if values and len(values) != count:
        raise StoreError(
            f"postgres.dsn names {len(values)} of {part} for {count} hosts: give each host its own"
        )
    return values


class HostOrder:
    """The hosts in the order to try them: whoever failed goes last, so whoever served last comes first.

    Threads may share one.
    """

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._hosts = list(hosts)
        self._failures = 0
        self._failed_places: dict[str, int] = {}

    @property
    def several(self) -> bool:
        """Whether there is another host to try."""
        return len(self._hosts) > 1

    def now(self) -> list[Host]:
        """Give the order as it stands."""
        return self._hosts.copy()

    def failed(self, host: Host) -> None:
        """Try the other hosts before this one."""
        self._hosts = [*(one for one in self._hosts if one is not host), host]

    def sorted(self, places: list[Place]) -> list[Place]:
        """Put the places of one host into the order to try them."""
        return sorted(places, key=lambda place: self._failed_places.get(place.dsn, 0))

    def place_failed(self, place: Place) -> None:
        """Try the host's other addresses before this one."""
        self._failures += 1
        self._failed_places[place.dsn] = self._failures


@lru_cache(maxsize=64)
def order_of(dsn: str) -> HostOrder:
    """Give the order that this process shares. Raises StoreError for a DSN that breaks libpq's rules."""
    return HostOrder(hosts_of(dsn))


def reordered(dsn: str) -> str:
    """Give the DSN with its hosts in the order to try them, for a process that does not know that yet."""
    hosts = [parse_dsn(host.dsn) for host in order_of(dsn).now()]
    if len(hosts) == 1:
        return dsn
    named = [part for part in _OF_A_HOST if any(part in host for host in hosts)]
    return str(make_dsn(dsn, **{part: ",".join(host.get(part, "") for host in hosts) for part in named}))
