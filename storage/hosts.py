"""The hosts that a DSN names, each with a DSN of its own, and which of them to try first.

libpq goes through such a list by itself, and so commands leave it to it (``storage/direct.py``). The
driver of the event loop cannot: it watches the socket of the first host alone, and waits in vain when
libpq has gone on to the next (aiopg #647).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Final

import msgspec
import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

from engine.ports import StoreError

#: Of the list as a whole: which of its hosts is the primary is asked by whoever connects.
_OF_THE_LIST: Final = ("target_session_attrs", "load_balance_hosts")


class Host(msgspec.Struct, frozen=True):
    """One host. ``name`` is empty where there is nothing to look up: a socket's path, an address."""

    dsn: str
    name: str

    async def addresses(self, patience_s: float) -> list[str]:
        """Give a DSN for each address that the name stands for, none if it is not known.

        Left to libpq, the look-up would hold up the event loop, and the driver hears nothing of the second
        address, as of the second host.
        """
        if not self.name:
            return [self.dsn]
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience_s):
                found = await loop.getaddrinfo(self.name, None, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError):
            return []
        return [self.at(str(address[0])) for *_, address in found]

    def at(self, address: str) -> str:
        """Give the DSN for one of the addresses that the name stands for."""
        return str(make_dsn(self.dsn, hostaddr=address))


def hosts_of(dsn: str) -> list[Host]:
    """Split a DSN, a URI or libpq's keywords, by the rules of libpq. Raises StoreError if it breaks them."""
    try:
        common = parse_dsn(dsn)
    except psycopg2.ProgrammingError:
        raise StoreError(
            "postgres.dsn is neither a URI nor libpq's keywords: write it as"
            " postgresql://user:password@host:port/database"
        ) from None
    for name in _OF_THE_LIST:
        common.pop(name, None)
    names, addresses, ports = (_listed(common.pop(part, "")) for part in ("host", "hostaddr", "port"))
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
        found.append(Host(str(make_dsn(**common, **own)), name if looked_up else ""))
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
    """The hosts in the order to try them: whoever failed goes last, so whoever served last comes first."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._hosts = list(hosts)

    @property
    def several(self) -> bool:
        """Whether there is another one to try."""
        return len(self._hosts) > 1

    def now(self) -> list[Host]:
        """Give the order as it stands."""
        return self._hosts.copy()

    def failed(self, host: Host) -> None:
        """Try the others before this one."""
        self._hosts.remove(host)
        self._hosts.append(host)
