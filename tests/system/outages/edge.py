"""nginx before the server of a site, with certificates that a test makes run out."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from bench.harness.clusters import free_port
from bench.harness.nginx import Nginx, certify, nginx_program, trusting
from tests.deploy.promtool import ROOT

#: By name, how long it is valid from now on.
_CERTIFICATES = {"first": timedelta(days=1), "expired": -timedelta(minutes=1), "renewed": timedelta(days=90)}


class Certificates:
    """The certificate that nginx serves, and others. As a unit it is the service that renews it."""

    active = False

    def __init__(self, home: Path) -> None:
        self.path = home / "certificate.pem"
        self._home = home
        for name, ends_in in _CERTIFICATES.items():
            (home / name).mkdir()
            certify(home / name, name, ends_in)
        pems = (home / name / "certificate.pem" for name in _CERTIFICATES)
        (home / "trusted.pem").write_text("".join(pem.read_text("ascii") for pem in pems), "ascii")
        self.use("first")

    @property
    def trusting(self) -> ssl.SSLContext:
        """What devices believe: each of them, while it is valid."""
        return trusting(self._home / "trusted.pem")

    def use(self, name: str) -> None:
        """Put another one in place, which nginx takes once it reads its files again."""
        for file in ("certificate.pem", "key.pem"):
            shutil.copyfile(self._home / name / file, self._home / file)

    async def start(self) -> None:
        """Renew it."""
        self.use("renewed")

    async def stop(self) -> None:
        """Do nothing."""

    def log(self) -> list[str]:
        """What it said."""
        return []


class Edge:
    """An nginx and its certificates."""

    def __init__(self, nginx: Nginx, home: Path, certificates: Certificates) -> None:
        self.certificates = certificates
        self.port = nginx.port
        self.url = nginx.url
        self.active = False
        self._nginx = nginx
        self._home = home

    async def start(self) -> None:
        """Start it."""
        await self._nginx.start()
        self.active = True

    async def stop(self) -> None:
        """Stop it, with all connections."""
        self.active = False
        await self._nginx.stop()

    async def reload(self) -> None:
        """Have it take the certificate that is there now."""
        await self._nginx.reload((self._home / "site.conf").read_text("utf-8"))

    def log(self) -> list[str]:
        """What it said."""
        return (self._home / "error.log").read_text("utf-8").splitlines()


async def edge(home: Path, port: int, environment: Mapping[str, str]) -> Edge:
    """Prepare an nginx with the site that ``run.py nginx`` prints for a server on a port."""
    place = home / "nginx"
    place.mkdir()
    certificates, program, https_port = Certificates(place), nginx_program(), free_port()
    assert program is not None
    printing = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "run.py"), "nginx", "--workers", "1", "--port", str(port)),
        *("--address", "127.0.0.1", "--https-port", str(https_port)),
        *("--certificate", str(certificates.path), "--key", str(certificates.path.with_name("key.pem"))),
        env=dict(environment),
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await printing.communicate()
    return Edge(Nginx(program, place, printed.decode(), https_port), place, certificates)
