"""The site that ``run.py nginx`` prints, in a real nginx: TLS, headers, and bytes read in two ways."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from bench.harness.nginx import Nginx, trusting
from bench.harness.server import free_ports
from tests.harness.fronted import nginx_for
from tests.harness.in_process_server import ON_SHARED
from tests.harness.raw_http import wired
from tests.security.arena import Arena
from tests.security.catalogue import against
from tests.security.test_browser import WARDS
from tests.security.test_http_messages import SMUGGLED

pytestmark = [ON_SHARED, against("A02:2025", "V12.1")]


class Front:
    """nginx before the arena's server."""

    def __init__(self, nginx: Nginx, home: Path) -> None:
        self.url = nginx.url
        self.tls = trusting(home / "certificate.pem")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def front(arena: Arena, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    """The printed site, which passes on to the arena's server."""
    home, port = tmp_path_factory.mktemp("nginx"), free_ports(1)
    worker = arena.url.rpartition(":")[2]
    nginx = nginx_for(home, port, "--workers", "1", "--port", worker)
    await nginx.start()
    try:
        yield Front(nginx, home)
    finally:
        await nginx.stop()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_site_old_version_of_tls_is_refused(version: ssl.TLSVersion, front: Front) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    tls.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLS"):
        tls.minimum_version = tls.maximum_version = version
    with pytest.raises(ssl.SSLError, match=r"(?i)version|alert"):
        async with wired(front.url, tls):
            pass


async def test_site_cipher_without_forward_secrecy_or_with_cbc_is_refused(front: Front) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    tls.set_ciphers("ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES128-SHA256:AES128-SHA:AES128-GCM-SHA256")
    with pytest.raises(ssl.SSLError, match=r"(?i)handshake"):
        async with wired(front.url, tls):
            pass


@against("A02:2025", "V3.4")
@pytest.mark.parametrize("path", ["/v1/changes", "/v1/sync", "/v1/uploads", "/healthz", "/.tidemark/refusal"])
async def test_site_answer_keeps_browsers_on_tls_and_runs_nothing(path: str, front: Front) -> None:
    async with wired(front.url, front.tls) as wire:
        answer = await wire.ask("GET", path, {})
    assert answer.headers.getall("Strict-Transport-Security") == ["max-age=31536000"]
    for name, value in WARDS.items():
        assert answer.headers.getall(name) == [value]
    assert answer.headers["Server"] in ("nginx", "Tidemark")


PROBES: Final = ("/metrics", "/readyz", "/METRICS", "//metrics", "/./readyz", "/x/../metrics", "/%6detrics")


@against("API8:2023", "V13.4")
@pytest.mark.parametrize("path", PROBES)
async def test_site_probes_are_closed_to_strangers(path: str, front: Front) -> None:
    async with wired(front.url, front.tls, local="127.0.0.9") as wire:
        answer = await wire.ask("GET", path, {})
    assert answer.verdict in ((403, "forbidden"), (404, "not_found"))


DOCUMENTS: Final = (
    "/docs",
    "/docs/rapidoc-min.js",
    "/openapi.json",
    "/asyncapi.json",
    "//docs/%72equests.js",
)


@against("API4:2023", "V2.4")
async def test_site_documents_of_one_address_are_bounded_and_cost_no_other(front: Front) -> None:
    async with wired(front.url, front.tls, local="127.0.0.10") as wire:
        answers = [await wire.ask("HEAD", DOCUMENTS[0], {}) for _ in range(10)]
        answers += [await wire.ask("HEAD", path, {}) for path in DOCUMENTS * 4]
        refused = next(
            answer
            for answer in [await wire.ask("GET", DOCUMENTS[1], {}) for _ in range(3)]
            if answer.status != 200
        )
        assert (await wire.ask("GET", "/healthz", {})).status == 200
    statuses = [answer.status for answer in answers]
    assert (set(statuses[:10]), 503 in statuses) == ({200}, True)
    assert (refused.verdict, len(refused.body) < 1000) == ((503, "unavailable"), True)
    async with wired(front.url, front.tls, local="127.0.0.11") as wire:
        assert (await wire.ask("GET", DOCUMENTS[1], {})).status == 200


#: As bytes reach a worker over connections that nginx keeps: the next client would get the hidden answer.
_FAST: Final = ("a length and chunks", "two lengths", "a line feed alone")
SENT: Final = [
    pytest.param(sent, id=name, marks=() if name in _FAST else pytest.mark.slow)
    for name, sent in SMUGGLED.items()
]


@against("API8:2023", "V4.2")
@pytest.mark.parametrize("sent", SENT)
async def test_site_ambiguous_request_gives_nobody_another_answer(
    sent: bytes, front: Front, arena: Arena
) -> None:
    async with arena.holds(), wired(front.url, front.tls) as attacker:
        await attacker.send(sent)
        answer = await attacker.answer()
        assert answer.status in (400, 401)
        assert b"hidden" not in answer.body
        for _ in range(3):
            async with wired(front.url, front.tls) as wire:
                assert (await wire.ask("GET", "/v1/changes", {})).verdict == (401, "unauthenticated")
