"""The hosts that a DSN names, the addresses of each, and which of them to try first.

libpq goes through such a list by itself, but begins with the first host each time: every connection of every
command would wait for a first host that does not answer.
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
from storage.postgres.cell.dsn import without_schema

#: Parameters of the whole list. They are dropped, since this process looks for the primary itself.
_OF_THE_LIST: Final = ("target_session_attrs", "load_balance_hosts")
#: Parameters that each host of a list has of its own.
_OF_A_HOST: Final = ("host", "hostaddr", "port")


#: The remedy if a part of the password is taken for the host, since it is not encoded.
_ENCODE_IT: Final = (
    "in the URI of postgres.dsn, characters such as @ : / ? # and % of a password are percent-encoded"
    " (@ is %40, / is %2F)"
)
#: How long connecting may take.
CONNECT_S: Final = 5.0
#: How long, if there are other hosts to try. A host that is down mostly does not refuse: it does not answer.
CONNECT_ONE_OF_SEVERAL_S: Final = 2.0


class Address(msgspec.Struct, frozen=True):
    """One address of one host. ``name`` is for people, ``timeout_s`` how long connecting may take."""

    dsn: str
    name: str
    timeout_s: float


class Host(msgspec.Struct, frozen=True):
    """One host. ``name`` is empty if there is nothing to look up: the path of a socket, or an address."""

    dsn: str
    name: str
    label: str = ""

    @property
    def unknown(self) -> str:
        """The sentence for a name without an address. A part of it that may be a password is not shown."""
        *_, after = self.name.rpartition("@")
        if after == self.name:
            return f"no address is known for {self.name}"
        return f"no address is known for ***@{after}: {_ENCODE_IT}"

    async def addresses(self, *, one_of_several: bool) -> list[Address]:
        """Look the name up and return its addresses, none if it is unknown.

        libpq would do that itself, but would block the event loop meanwhile.
        """
        found: list[Any] = []
        if self.name:
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(_timeout_s(one_of_several=one_of_several)):
                    found = await loop.getaddrinfo(self.name, None, type=socket.SOCK_STREAM)
            except (OSError, TimeoutError, ValueError):  # a name may be none of the domain name system's
                return []
        return self._at(found, one_of_several=one_of_several)

    def addresses_now(self, *, one_of_several: bool) -> list[Address]:
        """Return the same outside an event loop, with no limit of time but that of the system's resolver."""
        found: list[Any] = []
        if self.name:
            try:
                found = socket.getaddrinfo(self.name, None, type=socket.SOCK_STREAM)
            except (OSError, ValueError):
                return []
        return self._at(found, one_of_several=one_of_several)

    def _at(self, found: list[Any], *, one_of_several: bool) -> list[Address]:
        if not self.name:
            return [Address(self.dsn, self.label, _timeout_s(one_of_several=one_of_several))]
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        timeout_s = _timeout_s(one_of_several=one_of_several or len(addresses) > 1)
        return [
            Address(str(make_dsn(self.dsn, hostaddr=address)), self._label_at(address), timeout_s)
            for address in addresses
        ]

    def _label_at(self, address: str) -> str:
        return self.label if address == self.name else f"{self.label} ({address})"


def _timeout_s(*, one_of_several: bool) -> float:
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
    if options := without_schema(common.pop("options", "")):
        common["options"] = options
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
    """The hosts in the order to try them: one that failed goes last, so that the last good one is first.

    Threads may share one.
    """

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._hosts = list(hosts)
        self._failures = 0
        self._failed_addresses: dict[str, int] = {}

    @property
    def several(self) -> bool:
        """Return whether there is more than one host."""
        return len(self._hosts) > 1

    def now(self) -> list[Host]:
        """Return the hosts in their order."""
        return self._hosts.copy()

    def failed(self, host: Host) -> None:
        """Try the other hosts before this one."""
        self._hosts = [*(one for one in self._hosts if one is not host), host]

    def sorted(self, addresses: list[Address]) -> list[Address]:
        """Return the addresses of one host in the order to try them."""
        return sorted(addresses, key=lambda address: self._failed_addresses.get(address.dsn, 0))

    def address_failed(self, address: Address) -> None:
        """Try the host's other addresses before this one."""
        self._failures += 1
        self._failed_addresses[address.dsn] = self._failures


@lru_cache(maxsize=64)
def order_of(dsn: str) -> HostOrder:
    """Return the order of a DSN, shared by this process. Raises StoreError for a DSN that libpq refuses."""
    return HostOrder(hosts_of(dsn))


def reordered(dsn: str) -> str:
    """Return the DSN with its hosts in the order to try them, for a new process."""
    hosts = [parse_dsn(host.dsn) for host in order_of(dsn).now()]
    if len(hosts) == 1:
        return dsn
    named = [part for part in _OF_A_HOST if any(part in host for host in hosts)]
    return str(make_dsn(dsn, **{part: ",".join(host.get(part, "") for host in hosts) for part in named}))
