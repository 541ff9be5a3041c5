"""``run.py nginx``: the site that puts nginx in front of the workers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import click

from engine.settings import Settings
from handlers.commands.site import Site, SiteError, on_site

_TEMPLATE: Final = Path(__file__).parents[2] / "deploy" / "nginx" / "site.conf"
_BLANK: Final = re.compile(r"@\{(\w+)\}")
#: What nginx takes as one plain word; a name may begin with a wildcard.
_NAME: Final = re.compile(r"(\*\.)?[A-Za-z0-9_.-]+\Z")
_HOST: Final = re.compile(r"[A-Za-z0-9_.:-]+\Z")
_PATH: Final = re.compile(r"[A-Za-z0-9_./@+=~-]+\Z")
_EVERYWHERE: Final = ("0.0.0.0", "::", "*")  # noqa: S104  # to be told apart, not to listen on
_LAST_PORT: Final = 65_535


def _checked_name(_: click.Context, __: click.Parameter, name: str) -> str:
    if not _NAME.match(name):
        raise click.BadParameter("a host's name, such as sync.example.org.")
    return name


def _checked_hosts(_: click.Context, __: click.Parameter, hosts: tuple[str, ...]) -> tuple[str, ...]:
    if not all(map(_HOST.match, hosts)):
        raise click.BadParameter("an address or a name, such as 10.0.0.5 or app1.example.org.")
    return hosts


def _checked_path(_: click.Context, __: click.Parameter, path: str | None) -> str | None:
    if path is not None and not _PATH.match(path):
        raise click.BadParameter("a path without blanks and quotes.")
    return path


@click.command(
    "nginx",
    short_help="Print a site configuration for nginx.",
    epilog="Example: run.py nginx --workers 4 --server-name sync.example.org >tidemark.conf",
)
@click.option(
    "--workers", type=click.IntRange(min=1), metavar="N", help="Workers: at P+1, P+2, … or, alone, at P."
)
@click.option("--port", type=click.IntRange(0, 65535), metavar="P", help="Port that all workers share.")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="H",
    callback=_checked_hosts,
    help="A host that the workers run on, once for each of several.  [default: server.host]",
)
@click.option(
    "--server-name",
    default="localhost",
    show_default=True,
    metavar="NAME",
    callback=_checked_name,
    help="The host's name that devices use.",
)
@click.option(
    "--certificate",
    metavar="FILE",
    callback=_checked_path,
    help="Certificate with its chain.  [default: that of NAME under /etc/letsencrypt/live]",
)
@click.option(
    "--key", metavar="FILE", callback=_checked_path, help="Its private key.  [default: beside it likewise]"
)
@on_site(workers=("server", "workers"), port=("server", "port"))
def nginx(
    site: Site, *, hosts: tuple[str, ...], server_name: str, certificate: str | None, key: str | None
) -> None:
    """Print the site that puts nginx in front of as many workers, on this machine or others, with TLS."""
    live = f"/etc/letsencrypt/live/{server_name.removeprefix('*.')}"
    values = {
        **_backends(site.settings, hosts),
        "server_name": server_name,
        "certificate": certificate or f"{live}/fullchain.pem",
        "key": key or f"{live}/privkey.pem",
        "frame_bytes": str(site.settings.limits.frame_bytes),
    }
    click.echo(_BLANK.sub(lambda blank: values[blank[1]], _TEMPLATE.read_text("utf-8")), nl=False)


def _backends(chosen: Settings, hosts: tuple[str, ...]) -> dict[str, str]:
    """Describe the workers. Raises SiteError where nginx could not know their ports."""
    server = chosen.server
    if server.port == 0:
        raise SiteError("with server.port = 0 the system chooses the port: set one, or give --port")
    if server.port + server.workers > _LAST_PORT:
        raise SiteError(
            f"the last worker would listen on port {server.port + server.workers}: choose a lower server.port"
        )
    here = "127.0.0.1" if server.host in _EVERYWHERE else server.host
    addresses = [f"[{host}]" if ":" in host else host for host in hosts or (here,)]
    ports = [server.port + number for number in range(1, server.workers + 1)]
    if server.workers == 1:  # it has the shared port to itself
        ports = [server.port]
    count = len(addresses) * len(ports)
    return {
        "workers": "one worker" if count == 1 else f"{count} workers",
        "hosts": " and ".join(addresses),
        "servers": "\n".join(f"    server {address}:{port};" for address in addresses for port in ports),
    }
