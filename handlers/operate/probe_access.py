"""Who may read metrics and reasons: this machine, operators, and everybody on the port for probes."""

from __future__ import annotations

import hmac
import socket
from ipaddress import ip_address
from typing import Final, Literal

from aiohttp import web

from engine.cache.ports import ANY_TENANT
from engine.cache.revocations import Revocations
from engine.wire.errors import SyncError
from handlers.http.refusals import CLAIMS
from handlers.http.tokens import Verifier, token_of

#: A request with the workers' secret in this header comes from a worker of the same supervisor.
WORKER_HEADER: Final = "X-Tidemark-Worker"
#: Headers of proxies: a request with one of them was passed on, and its peer is not the client.
_PASSED_ON: Final = (
    "Forwarded",
    "Via",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Prefix",
    "X-Forwarded-Proto",
    "X-Real-IP",
)

_MACHINE: Final = socket.gethostname().lower()

#: ``all`` on the port for probes; ``nobody`` on other ports beside it; else ``operators``, that is
#: operators of all tenants, programs of this machine, and the other workers.
Audience = Literal["all", "operators", "nobody"]


class ProbeAccess:
    """Decides for each request whether it gets metrics and reasons.

    Args:
        verifier: Verifies tokens of operators.
        revocations: Tokens that are refused.
        audience: Who gets them on this port.
        secret: The secret of the workers of one supervisor; empty without a supervisor.
    """

    def __init__(self, verifier: Verifier, revocations: Revocations, audience: Audience, secret: str) -> None:
        self._verifier = verifier
        self._revocations = revocations
        self._audience = audience
        self._secret = secret.encode()

    def check(self, request: web.Request) -> None:
        """Raise SyncError for a request without access."""
        if self._audience == "all" or self._is_worker(request):
            return
        if self._audience == "nobody":
            raise SyncError("not_found", "only the port server.probe_port answers this")
        if not _is_local(request):
            self._check_operator(request)

    def __contains__(self, request: web.Request) -> bool:
        """Return whether a request has access."""
        try:
            self.check(request)
        except SyncError:
            return False
        return True

    def _is_worker(self, request: web.Request) -> bool:
        said = request.headers.get(WORKER_HEADER, "").encode(errors="replace")
        return bool(self._secret) and hmac.compare_digest(said, self._secret)

    def _check_operator(self, request: web.Request) -> None:
        claims = self._verifier.verify(token_of(request.headers))
        request[CLAIMS] = claims
        if claims.role != "operator" or claims.tenant is not None:
            raise SyncError("forbidden", "a token of an operator of all tenants is required")
        if self._revocations.refuses_token(ANY_TENANT, claims.token_id):
            raise SyncError("unauthenticated", "this token was revoked")


def _is_local(request: web.Request) -> bool:
    """Return whether a request comes from a program of this machine, not through a proxy."""
    if any(name in request.headers for name in _PASSED_ON) or not _names_here(request.host):
        return False
    try:
        address = ip_address(request.remote or "")
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _names_here(host: str) -> bool:
    """Return whether ``Host`` can mean this machine: an address, a name without a dot, or the machine's own.

    A page can give its own name any address, and its browser then takes a server on this machine for the
    page's own. That name has a dot, since it is on the Internet.
    """
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if "." not in name.rstrip(".") or name.lower() == _MACHINE:
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
