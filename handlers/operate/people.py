"""People's requests: tokens of operators and viewers, of one tenant or of all."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from aiohttp import web

from engine.cache.ports import ANY_TENANT
from engine.cache.revocations import Revocations
from engine.cache.tenants import TenantCache
from engine.wire.errors import SyncError
from handlers.http.edge_protocol import mark_authenticated
from handlers.http.refusals import CLAIMS
from handlers.http.tokens import Verifier, token_of


class Question(NamedTuple):
    """What a request is about, and the token that asks.

    ``tenant`` is None for all. There may be no such tenant: to look it up takes a turn.
    """

    tenant: str | None
    token: tuple[str | None, str]


class People(msgspec.Struct, frozen=True):
    """Decides what people's tokens may ask about."""

    verifier: Verifier
    tenants: TenantCache
    revocations: Revocations

    async def question(self, request: web.Request, wanted: str | None) -> Question:
        """Return which tenant a request is about, and whose it is.

        Args:
            request: The request.
            wanted: The tenant that it names. Without one it is about all that its token may see.

        Raises:
            SyncError: ``unauthenticated``; ``forbidden`` for a device's token, or one of another tenant;
                ``not_found`` for what no tenant can be named.
            StoreError: The token's tenant has to be read first, and the store is away.
        """
        self.verifier.check_origin(request.headers.get("Origin"))
        claims = self.verifier.verify(token_of(request.headers))
        request[CLAIMS] = claims
        if claims.role not in ("operator", "viewer"):
            raise SyncError("forbidden", "a token of an operator or a viewer is required")
        own = claims.tenant
        if own is None:
            self._check_not_revoked(ANY_TENANT, claims.token_id)
            mark_authenticated(request)
            if wanted is not None and "\0" in wanted:  # the database refuses to look for it
                raise no_tenant()
            return Question(wanted, (None, claims.token_id))
        tenant = await self.tenants.find(own)
        if tenant is None:
            raise SyncError("forbidden", "there is no such tenant: check the tid of the token")
        self.verifier.check_tenant(claims, tenant)
        self._check_not_revoked(tenant.tenant_id, claims.token_id)
        mark_authenticated(request)
        if wanted not in (None, own):
            raise SyncError("forbidden", "this token is for one tenant alone, and that is another one")
        return Question(own, (own, claims.token_id))

    def _check_not_revoked(self, tenant_id: int, token_id: str) -> None:
        if self.revocations.refuses_token(tenant_id, token_id):
            raise SyncError("unauthenticated", "this token was revoked")


def no_tenant() -> SyncError:
    """Return the error for a tenant that is not there."""
    return SyncError("not_found", "there is no such tenant: `run.py tenant list` has the names")
