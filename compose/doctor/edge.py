"""Checks of the address that devices use, from outside: its certificate, and a handshake of a WebSocket."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from aiohttp import (
    ClientConnectorCertificateError,
    ClientError,
    ClientSession,
    ClientTimeout,
    WSServerHandshakeError,
)

from engine.operate.checklist import DeviceAddress
from engine.operate.rows import CheckResult
from engine.wire.codec import JSON
from engine.wire.floats import json_decoder

_ANSWER_S: Final = 5.0
#: Certificates that are renewed by a program are renewed a month ahead: less than this means that it fails.
_LEAST_VALID: Final = timedelta(days=14)
_UPGRADING: Final = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGlkZW1hcmsgZG9jdG9yIQ==",
}


def certificate_finding(at: DeviceAddress) -> CheckResult:
    """Open TLS at the address, as a device does."""
    if not at.encrypted:
        if at.is_local:
            return CheckResult("not checked", "certificate", f"{at.url} is on this machine, without TLS")
        found = f"{at.url} is not encrypted: everybody on the way reads tokens and data"
        return CheckResult("fault", "certificate", found, "put nginx with TLS in front (`run.py nginx`)")
    try:
        trusting = ssl.create_default_context(cafile=at.authority)
    except OSError as error:
        found = f"{at.authority} cannot be read: {error.strerror or error}"
        return CheckResult("fault", "certificate", found, "give a file of certificates in PEM by --ca")
    try:
        with (
            socket.create_connection((at.host, at.port), timeout=_ANSWER_S) as plain,
            trusting.wrap_socket(plain, server_hostname=at.host) as opened,
        ):
            certificate: dict[str, Any] = dict(opened.getpeercert() or {})
    except ssl.SSLCertVerificationError as error:
        found = f"devices refuse the certificate of {at.host}: {error.verify_message}"
        return CheckResult("fault", "certificate", found, _remedy(error.verify_code))
    except OSError as error:
        found = f"{at.host} port {at.port}: {error.strerror or error}"
        return CheckResult(
            "fault", "certificate", found, "see that nginx runs, and that the name leads to it"
        )
    return validity_finding(at.host, ssl.cert_time_to_seconds(certificate["notAfter"]), datetime.now(UTC))


def validity_finding(host: str, until_s: float, now: datetime) -> CheckResult:
    """Judge how long a certificate is still valid."""
    until = datetime.fromtimestamp(until_s, UTC)
    found = f"the certificate of {host} is valid until {until:%Y-%m-%d}, {(until - now).days} days more"
    if until - now < _LEAST_VALID:
        remedy = (
            "renew it now, and see why that did not happen by itself (`certbot renew`; sign"
            " again with an authority of your own), then reload nginx"
        )
        return CheckResult("warning", "certificate", found, remedy)
    return CheckResult("ok", "certificate", found)


#: What OpenSSL says is wrong with a certificate, by its number.
_REMEDIES: Final = {
    9: "set the clock of this host, or renew the certificate",
    10: "renew it (`certbot renew`; sign again with an authority of your own), then reload nginx",
    18: "use one of an authority that devices know; for an authority of your own give --ca FILE",
    19: "use one of an authority that devices know; for an authority of your own give --ca FILE",
    20: "give nginx the chain too (fullchain.pem); for an authority of your own give --ca FILE",
    21: "give nginx the chain too (fullchain.pem); for an authority of your own give --ca FILE",
    62: "get a certificate for this name, or give the name that the certificate has",
    64: "give the name that the certificate has, not an address",
}


def _remedy(code: int) -> str:
    return _REMEDIES.get(code, "get another certificate, or mend `ssl_certificate` of nginx")


async def websocket_finding(at: DeviceAddress, sign: Callable[[], str] | None) -> CheckResult:
    """Make a handshake at the address. A token goes only to a host that proves its name, or to this one.

    Args:
        at: The address.
        sign: Signs a device's token; None makes a handshake that the server has to refuse.
    """
    if sign is not None and not (at.encrypted or at.is_local):
        found = f"no token was sent to {at.url}: everybody on the way could read it"
        return CheckResult(
            "not checked", "websocket", found, "give the wss:// address, or leave --tenant out"
        )
    try:
        trusting = ssl.create_default_context(cafile=None if sign is None else at.authority)
    except OSError:
        return _unproven(at)
    timeout = ClientTimeout(total=_ANSWER_S)
    try:
        async with ClientSession(timeout=timeout, trust_env=False) as session:
            if sign is None:
                # The certificate has a check of its own: what it lacks is not told twice.
                trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
                async with session.get(f"{at.url}/v1/sync", headers=_UPGRADING, ssl=trusting) as answer:
                    return _refused(at, answer.status, await answer.read())
            headers = {"Authorization": f"Bearer {sign()}"}
            async with session.ws_connect(
                f"{at.url}/v1/sync", headers=headers, protocols=(JSON.subprotocol,), ssl=trusting
            ) as opened:
                async with asyncio.timeout(_ANSWER_S):
                    welcome = await opened.receive_json()
                if welcome.get("type") == "welcome":
                    return CheckResult("ok", "websocket", f"{at.host} let a device in and welcomed it")
                return _fault(f"{at.host} opened a WebSocket and sent {welcome.get('code')}", _READY)
    except WSServerHandshakeError as error:
        return _fault(f"{at.host} answered the handshake with {error.status}", _UPGRADE)
    except ClientConnectorCertificateError:
        return _unproven(at)
    except (ClientError, OSError, TimeoutError, TypeError, ValueError) as error:
        return _fault(f"{at.host} gave no answer to the handshake ({type(error).__name__})", _READY)


_UPGRADE: Final = (
    "pass Upgrade and Connection on with HTTP/1.1, as the site of `run.py nginx` does; if it was the token,"
    " the server's log has handshake_refused"
)
_READY: Final = "see that the server is ready (`/readyz`), and that the balancer leads to it"


def _unproven(at: DeviceAddress) -> CheckResult:
    found = f"no token was sent to {at.host}: its certificate is not trusted"
    return CheckResult("not checked", "websocket", found, "mend what is said of the certificate first")


def _refused(at: DeviceAddress, status: int, body: bytes) -> CheckResult:
    """Judge the answer to a handshake without a token: only a server words its refusal so."""
    try:
        code = json_decoder(dict[str, Any]).decode(body).get("code")
    except msgspec.DecodeError:
        code = None
    if status == 401 and code == "unauthenticated":
        found = f"{at.host} leads to a server, which refused a handshake without a token"
        return CheckResult("not checked", "websocket", found, "give --tenant T for a handshake to its end")
    return _fault(f"{at.host} answered a handshake with {status}, and not as a server does", _READY)


def _fault(found: str, remedy: str) -> CheckResult:
    return CheckResult("fault", "websocket", found, remedy)
