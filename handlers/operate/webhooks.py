"""Sends alerts over HTTP: to any webhook, signed as Standard Webhooks wants it, or to one of Slack.

An address is judged when the socket to it is made, because only then it is certain: a name may have another
address each time, and an address in the URL is never looked up. Redirects are not followed. No proxy of the
environment is used.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import socket
import time
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import msgspec
from aiohttp import ClientConnectorError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult

from engine.operate.alert_delivery import AlertNotSentError
from engine.operate.monitor.alerts import Alert, AlertThreshold

#: All of a request: connecting, sending and reading the answer.
TIMEOUT_S: Final = 5.0
#: A receiver that asks for a longer pause is asked again all the same.
_LONGEST_RETRY_AFTER_S: Final = 3600.0
#: How Standard Webhooks marks a secret.
_BASE64: Final = "whsec_"
#: The buffer of the socket, so that little is read in a turn of the loop: aiohttp reads past answers of
#: status 1xx without another turn, and as many as a receiver sends held the loop for 5.7 s.
_RECEIVED_BYTES: Final = 4096
_REFUSED: Final = "{} is not a public address: set alerts.private_addresses = true if it is the right one"
_NAT64: Final = IPv6Network("64:ff9b::/96")
#: All that is on the Internet so far. Outside of it are site-local addresses, and forms of IPv4 addresses.
_GLOBAL: Final = IPv6Network("2000::/3")
#: Python's own list leaves these out: of protocols and cloud providers, of relays, and for documentation.
_SPECIAL: Final = (
    IPv4Network("192.0.0.0/24"),
    IPv4Network("192.88.99.0/24"),
    IPv4Network("168.63.129.16/32"),
    IPv6Network("3fff::/20"),
)
_COLORS: Final = {"info": "warning", "warning": "warning", "critical": "danger"}
_TITLES: Final = {"fired": "", "worsened": " (worse)", "cleared": " (over)"}


#: What ``socket.getaddrinfo`` finds.
_Found = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]


class AddressRefusedError(OSError):
    """The receiver's address is not on the Internet, and no setting allows that."""


class _Resolver(AbstractResolver):
    """Looks the host of a receiver up in a thread of its own, one lookup at a time.

    The event loop has two threads for that. With a name server that does not answer, two alerts would keep
    both for ten seconds, and a database whose name is to be looked up would be away for as long.
    """

    def __init__(self) -> None:
        self._lookup: asyncio.Future[list[_Found]] | None = None

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of the host."""
        lookup = self._lookup
        if lookup is None or lookup.done():
            ask = partial(_look_up, host, port, family)
            lookup = asyncio.ensure_future(anyio.to_thread.run_sync(ask, abandon_on_cancel=True))
            lookup.add_done_callback(_Resolver._ended)
            self._lookup = lookup
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=found,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found, _, protocol, _, address in await asyncio.shield(lookup)
        ]

    @staticmethod
    def _ended(lookup: asyncio.Future[list[_Found]]) -> None:
        """Look at its failure, which perhaps nobody waited for."""
        if not lookup.cancelled():
            lookup.exception()

    async def close(self) -> None:
        """Close nothing."""


def _look_up(host: str, port: int, family: socket.AddressFamily) -> list[_Found]:
    return [*socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)]


class Webhook:
    """A receiver of JSON (``engine.operate.alert_delivery.AlertSender``).

    Args:
        url: Where alerts are sent. It is a secret.
        threshold: The mildest severity that is sent.
        secret: The key of the signature: base64 after ``whsec_``, or any text. Empty for none.
        private_addresses: Whether the receiver may have a private or link-local address.
    """

    kind = "webhook"

    def __init__(
        self, url: str, threshold: AlertThreshold, secret: str = "", *, private_addresses: bool = False
    ) -> None:
        self.target = f"{self.kind}:{sha256(url.encode()).hexdigest()[:16]}"
        self.threshold = threshold
        self._url = url
        self._key = signing_key(secret)
        self._private_addresses = private_addresses
        self._resolver = _Resolver()

    @property
    def encrypted(self) -> bool:
        """Whether nobody on the way can read the alerts."""
        return urlsplit(self._url).scheme == "https"

    def address_fault(self) -> str | None:
        """Look up the receiver's addresses, which blocks. Returns what is wrong, None if nothing is."""
        parts = urlsplit(self._url)
        try:
            found = socket.getaddrinfo(parts.hostname, parts.port or parts.scheme, type=socket.SOCK_STREAM)
        except OSError as error:
            return f"its host is not known: {error.strerror}"
        refused = [address[0] for *_, address in found if not self._allows(str(address[0]))]
        return _REFUSED.format(refused[0]) if refused else None

    async def send(self, alert: Alert) -> None:
        """Send an alert. Raises AlertNotSentError."""
        body, signed = self._request(alert)
        headers = {"Content-Type": "application/json", "User-Agent": "Tidemark", **signed}
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                ClientSession(
                    connector=TCPConnector(socket_factory=self._socket, resolver=self._resolver, limit=1),
                    timeout=ClientTimeout(total=None),
                    trust_env=False,
                    cookie_jar=DummyCookieJar(),  # the usual one logs names of cookies that it refuses
                ) as session,
                session.post(self._url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                status, retry_after = response.status, response.headers.get("Retry-After", "")
        except TimeoutError:
            raise AlertNotSentError(f"no answer within {TIMEOUT_S:g} s") from None
        except ClientConnectorError as error:
            cause = error.os_error
            said = str(cause) if isinstance(cause, AddressRefusedError) else cause.strerror or "unreachable"
            raise AlertNotSentError(f"cannot connect: {said}") from None
        except Exception as error:  # whatever it is, the process goes on; its text may have the URL
            raise AlertNotSentError(f"no answer that is HTTP: {type(error).__name__}") from None
        if 300 <= status < 400:
            raise AlertNotSentError(
                f"status {status} of the receiver: redirects are not followed, set the final URL"
            )
        if not 200 <= status < 300:
            raise AlertNotSentError(f"status {status} of the receiver", _seconds(retry_after))

    def _request(self, alert: Alert) -> tuple[bytes, Mapping[str, str]]:
        """Return the body and the headers of Standard Webhooks."""
        body, at = msgspec.json.encode(alert), str(int(time.time()))
        headers = {"webhook-id": alert.id, "webhook-timestamp": at}
        if self._key:
            digest = hmac.digest(self._key, b".".join((alert.id.encode(), at.encode(), body)), "sha256")
            headers["webhook-signature"] = "v1," + base64.b64encode(digest).decode()
        return body, headers

    def _socket(self, info: tuple[int, int, int, str, tuple[Any, ...]]) -> socket.socket:
        family, kind, protocol, _, address = info
        if not self._allows(address[0]):
            raise AddressRefusedError(_REFUSED.format(address[0]))
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVED_BYTES)
        return made

    def _allows(self, address: str) -> bool:
        return self._private_addresses or is_public(address)


class SlackWebhook(Webhook):
    """A receiver at Slack: one coloured attachment a message."""

    kind = "slack"

    def _request(self, alert: Alert) -> tuple[bytes, Mapping[str, str]]:
        title = f"{alert.severity.capitalize()}: {alert.metric}{_TITLES[alert.kind]}"
        fields = [("Tenant", alert.tenant or "all"), ("Severity", alert.severity)]
        if alert.current_value is not None and alert.threshold is not None:
            fields += [("Value", f"{alert.current_value:.6g}"), ("Threshold", f"{alert.threshold:.6g}")]
        attachment = {
            "color": "good" if alert.kind == "cleared" else _COLORS[alert.severity],
            "fallback": _escaped(f"{title}: {alert.message}"),
            "title": _escaped(title),
            "text": _escaped(alert.message),
            "fields": [{"title": name, "value": _escaped(value), "short": True} for name, value in fields],
            "footer": f"Tidemark {alert.id}",
            "ts": int(alert.timestamp.timestamp()),
        }
        return msgspec.json.encode({"attachments": [attachment]}), {}


def signing_key(secret: str) -> bytes:
    """Return the bytes of a secret. Raises ValueError if it begins like one in base64 and is none."""
    if secret.startswith(_BASE64):
        return base64.b64decode(secret.removeprefix(_BASE64), validate=True)
    return secret.encode()


def url_fault(url: str) -> str | None:
    """Return in one sentence why a URL cannot be a receiver's; None if it can."""
    try:
        parts = urlsplit(url)
        port = parts.port
        url.encode()
    except ValueError:
        return "is not a URL"
    if parts.scheme not in ("https", "http") or not parts.hostname:
        return 'has to begin with "https://" (or "http://") and a host'
    try:
        parts.hostname.encode("idna")
    except UnicodeError:
        return "has a host that cannot be one"
    if port == 0:
        return "has port 0"
    return None


def is_public(address: str) -> bool:
    """Return whether an address is on the Internet, also if it is an IPv4 address inside of an IPv6 one."""
    try:
        found: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return all(_is_on_internet(one) for one in _inside(found))


def _is_on_internet(address: IPv4Address | IPv6Address) -> bool:
    return (
        address.is_global
        and not address.is_multicast
        and (isinstance(address, IPv4Address) or address in _GLOBAL)
        and not any(address in network for network in _SPECIAL)
    )


def _inside(address: IPv4Address | IPv6Address) -> list[IPv4Address | IPv6Address]:
    """Return the addresses that packets to an address may reach."""
    if isinstance(address, IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in _NAT64:
        return [IPv4Address(int(address) & 0xFFFF_FFFF)]
    if address.sixtofour is not None:
        return [address, address.sixtofour]
    if address.teredo is not None:
        return [address, *address.teredo]
    return [address]


def _seconds(text: str) -> float:
    return min(float(text), _LONGEST_RETRY_AFTER_S) if text.isascii() and text.isdigit() else 0.0


def _escaped(text: str) -> str:
    """Escape what Slack reads as links and mentions."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
