"""Tokens of one cell at the server of another, which has the same key, tenant and device."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Final

import pytest
from aiohttp import WSServerHandshakeError

from tests.harness.in_process_server import Running, Serve, new_tenants
from tests.harness.services import CELLS, execute, in_cell
from tests.harness.ws_device import connected, token
from tests.security.catalogue import against

pytestmark = [
    against("A01:2025", "V9.2"),
    pytest.mark.parametrize("dsn", ["cells_template"], indirect=True),
]

ONE, OTHER = (f"tidemark/{schema}" for schema in CELLS)
#: The ``aud`` of a token, and which servers let it in: of the first cell, of the second one.
TAKEN: Final[dict[str, tuple[object, tuple[bool, bool]]]] = {
    "of the first cell": (ONE, (True, False)),
    "of the second cell": (OTHER, (False, True)),
    "of both cells": ([ONE, OTHER], (True, True)),
    "of a server without a cell": ("tidemark", (False, False)),
    "of no cell": ("tidemark/", (False, False)),
    "of a cell of another audience": (f"other/{CELLS[0]}", (False, False)),
}


async def _lets_in(server: Running, signed: str) -> bool:
    headers = {"Authorization": f"Bearer {signed}"}
    async with server.http.get(f"{server.url}/v1/changes", headers=headers) as response:
        over_http = response.status == 200
        assert over_http or "another audience" in await response.text()
    with nullcontext() if over_http else pytest.raises(WSServerHandshakeError, match="401"):
        async with connected(server.url, server.http, signed=signed):
            pass
    return over_http


async def test_cells_token_of_one_is_refused_by_the_other(serve: Serve, dsn: str) -> None:
    execute(in_cell(dsn, CELLS[1]), new_tenants("acme"))
    servers = [await serve(at=in_cell(dsn, schema), postgres={"schema": schema}) for schema in CELLS]
    found = {
        name: tuple([await _lets_in(server, token(aud=aud)) for server in servers])
        for name, (aud, _) in TAKEN.items()
    }
    assert found == {name: taken for name, (_, taken) in TAKEN.items()}
