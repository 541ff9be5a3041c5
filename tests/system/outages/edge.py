"""nginx before the server of a site, with certificates that a test makes run out."""

from __future__ import annotations

import shutil
import ssl
from datetime import timedelta
from pathlib import Path

from bench.harness.clusters import free_port
from bench.harness.nginx import Nginx, certify, nginx_program, trusting
from compose.configuration import VARIABLE
from tests.harness.fronted import site_at

#: By name, how long it is valid from now on.
_CERTIFICATES = {"first": timedelta(days=1), "expired": -timedelta(minutes=1), "renewed": timedelta(days=90)}


class Certificates:
    """The certificate that nginx serves, and others. As a unit it is the service that renews it."""

    active = False

    def __init__(self, home: Path) -> None:
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


def edge(home: Path, port: int, config: Path) -> Edge:
    """Prepare an nginx with the site that ``run.py nginx`` prints for a server on a port, by its settings."""
    place = home / "nginx"
    place.mkdir()
    certificates, program, https_port = Certificates(place), nginx_program(), free_port()
    assert program is not None
    site = site_at(place, https_port, "--workers", "1", "--port", str(port), **{VARIABLE: str(config)})
    return Edge(Nginx(program, place, site, https_port), place, certificates)
