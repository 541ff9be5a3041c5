"""``run.py nginx``: prints a site configuration of nginx for the workers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from engine.runtime.settings import Settings
from handlers.commands.deployment import Deployment, DeploymentError, with_deployment
from handlers.operate.own_address import in_brackets, own_host
from handlers.operate.printing import say

_TEMPLATES: Final = Path(__file__).parents[2] / "deploy" / "nginx"
_BLANK: Final = re.compile(r"@\{(\w+)\}")
#: A name that all sites of one nginx share: of a variable, a zone or a group of workers.
_SHARED_NAME: Final = re.compile(r"tidemark_\w+")
#: A name that nginx reads as one plain word; it may begin with a wildcard.
_NAME: Final = re.compile(r"(\*\.)?[A-Za-z0-9_.-]+\Z")
_HOST: Final = re.compile(r"[A-Za-z0-9_.:-]+\Z")
_PATH: Final = re.compile(r"[A-Za-z0-9_./@+=~-]+\Z")
_ORIGIN: Final = re.compile(r"[A-Za-z0-9_.:/+\[\]-]+\Z")
_WORKER: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):(\d{1,5})\Z")
_LAST_PORT: Final = 65_535
_HTTPS_PORT: Final = 443
#: Handshakes and other requests that one worker handles in a second.
_HANDSHAKES_PER_S: Final = 500
_REQUESTS_PER_S: Final = 2000
#: Requests for so many seconds may wait in nginx.
_BURST_S: Final = 5
#: A new connection goes to the worker with the fewest, also after a restart of one. A host that vanished has
#: the fewest connections of all, so every client would try its workers first, half a second each.
_ONE_HOST: Final = "    least_conn;"
_SEVERAL_HOSTS: Final = "    # In turns, for a host that vanished has the fewest connections of all."


def _checked_name(_: click.Context, __: click.Parameter, name: str) -> str:
    if not _NAME.match(name):
        raise click.BadParameter("a host's name, such as sync.example.org.")
    return name


def _checked_hosts(_: click.Context, __: click.Parameter, hosts: tuple[str, ...]) -> tuple[str, ...]:
    if not all(map(_HOST.match, hosts)):
        raise click.BadParameter("an address or a name, such as 10.0.0.5 or app1.example.org.")
    return hosts


def _checked_workers(_: click.Context, __: click.Parameter, listed: str | None) -> list[str]:
    workers = [] if listed is None else listed.split(",")
    for worker in workers:
        found = _WORKER.match(worker)
        if found is None or not 0 < int(found[2]) <= _LAST_PORT:
            raise click.BadParameter(f"{worker!r} is no HOST:PORT, such as 10.0.0.5:8081.")
    return workers


def _checked_path(_: click.Context, __: click.Parameter, path: str | None) -> str | None:
    if path is not None and not _PATH.match(path):
        raise click.BadParameter("a path without blanks and quotes.")
    return path


_ALL: Final = 100
_BEHIND: Final = """
# Devices of green whose workers cannot be reached go to blue, and never the other way: a new version gets no
# more than its share.
"""


@click.command(
    "nginx",
    short_help="Print a site configuration for nginx.",
    epilog="""\b
Examples:
  run.py nginx --workers 4 --server-name sync.example.org >tidemark.conf
  run.py nginx --server-name sync.example.org --redirect-port 80 --http2 listen
  run.py nginx --host 10.0.0.5 --host 10.0.0.6 --workers 4 --address 203.0.113.7 --https-port 8443
  run.py nginx --blue 127.0.0.1:8081 --green 127.0.0.1:9081 --weight 10 --server-name sync.example.org""",
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
@click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="A",
    callback=_checked_hosts,
    help="An address that nginx listens on, once for each.  [default: every one, of IPv4 and IPv6]",
)
@click.option(
    "--https-port",
    type=click.IntRange(1, _LAST_PORT),
    default=_HTTPS_PORT,
    show_default=True,
    metavar="P",
    help="Port that devices use.",
)
@click.option(
    "--redirect-port",
    type=click.IntRange(1, _LAST_PORT),
    metavar="P",
    help="Port of plain HTTP, mostly 80, whose requests are sent to HTTPS.  [default: none]",
)
@click.option(
    "--http2",
    type=click.Choice(["listen", "on"]),
    help="Offer HTTP/2 too: by `listen … http2`, which every nginx takes and those from 1.25.1 on warn of,"
    " or by `http2 on`, which needs 1.25.1. WebSockets stay on HTTP/1.1.",
)
@click.option(
    "--blue",
    metavar="H:P,…",
    callback=_checked_workers,
    help="Workers of the version that serves, each at its own port; in place of --host, --workers, --port.",
)
@click.option(
    "--green", metavar="H:P,…", callback=_checked_workers, help="Workers of the version that is to take over."
)
@click.option(
    "--weight",
    type=click.IntRange(0, _ALL),
    metavar="N",
    help="Percent of devices that green serves. 0 is the way back, and leaves green out.",
)
@with_deployment(workers=("server", "workers"), port=("server", "port"))
def nginx(
    deployment: Deployment,
    *,
    hosts: tuple[str, ...],
    server_name: str,
    certificate: str | None,
    key: str | None,
    addresses: tuple[str, ...],
    https_port: int,
    redirect_port: int | None,
    http2: str | None,
    **sides: Any,
) -> None:
    """Print the site that puts nginx in front of as many workers, on this machine or others, with TLS.

    With --blue, --green and --weight it shares devices between two versions: a device stays on its side.
    """
    if click.get_current_context().get_parameter_source("server_name") is ParameterSource.DEFAULT:
        say("this site is for localhost alone: name the host that devices use, --server-name NAME", err=True)
    if redirect_port == https_port:
        raise click.UsageError("--redirect-port and --https-port: two different ports are required")
    live = f"/etc/letsencrypt/live/{server_name.removeprefix('*.')}"
    port = "" if https_port == _HTTPS_PORT else f":{https_port}"
    cell = deployment.settings.postgres.schema
    values = {
        **(_shared(cell, **sides) if _are_shared(**sides) else _backends(deployment.settings, hosts)),
        "server_name": server_name,
        "certificate": certificate or f"{live}/fullchain.pem",
        "key": key or f"{live}/privkey.pem",
        "frame_bytes": str(deployment.settings.limits.frame_bytes),
        "origins": "".join(f'    "{one}" "{one}";\n' for one in _origins(deployment.settings)),
        "listen": _listening(addresses, https_port, " ssl http2" if http2 == "listen" else " ssl")
        + ("\n    http2 on;" if http2 == "on" else ""),
        "host_header": f"$host{port}",
        "redirect": ""
        if redirect_port is None
        else _REDIRECT.format(
            listen=_listening(addresses, redirect_port), server_name=server_name, port=port
        ),
    }
    click.echo(_filled("site.conf", values, cell), nl=False)


#: 308 keeps the method and the body of what is sent to HTTPS.
_REDIRECT: Final = """
server {{
{listen}
    server_name {server_name};
    server_tokens off;
    return 308 https://$host{port}$request_uri;
}}
"""


def _listening(addresses: tuple[str, ...], port: int, kind: str = "") -> str:
    """Return the ``listen`` lines: one for each address, or for all of IPv4 and IPv6."""
    named = [f"{in_brackets(address)}:" for address in addresses] or ["", "[::]:"]
    return "\n".join(f"    listen {address}{port}{kind};" for address in named)


def _origins(chosen: Settings) -> list[str]:
    """Return the origins whose pages may read refusals of nginx. Raises DeploymentError."""
    for origin in chosen.server.origins:
        if not _ORIGIN.match(origin):
            raise DeploymentError(
                f"server.origins: {origin!r} is no origin; correct it, then print the site again"
            )
    return list(chosen.server.origins)


def _backends(chosen: Settings, hosts: tuple[str, ...]) -> dict[str, str]:
    """Return the ``upstream`` lines. Raises DeploymentError if the ports of the workers are not known."""
    server = chosen.server
    if server.port == 0:
        raise DeploymentError("with server.port = 0 the system chooses the port: set one, or give --port")
    if server.port + server.workers > _LAST_PORT:
        raise DeploymentError(
            f"the last worker would listen on port {server.port + server.workers}: choose a lower server.port"
        )
    addresses = [in_brackets(host) for host in hosts] or [own_host(server.host)]
    ports = [server.port + number for number in range(1, server.workers + 1)]
    if server.workers == 1:  # it has the shared port to itself
        ports = [server.port]
    # The hosts by turns: what a host that vanished does not take goes to a worker of another next.
    workers = [f"{address}:{port}" for port in ports for address in addresses]
    cell = chosen.postgres.schema
    name = _own("tidemark_cell", cell) if cell else "tidemark"
    return {"upstreams": _upstream(name, workers), "side": name, **_rates(workers)}


def _are_shared(blue: list[str], green: list[str], weight: int | None) -> bool:
    """Return whether two versions are to share the devices. Raises UsageError."""
    asked = bool(blue), bool(green), weight is not None
    if not any(asked):
        return False
    if not all(asked):
        raise click.UsageError("--blue, --green and --weight belong together: give all three")
    if set(blue) & set(green):
        raise click.UsageError(f"--green: {min(set(blue) & set(green))} is of --blue, too")
    context = click.get_current_context()
    for name, option in (("hosts", "--host"), ("workers", "--workers"), ("port", "--port")):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option}: --blue and --green name all workers, leave it out")
    return True


def _shared(cell: str, blue: list[str], green: list[str], weight: int) -> dict[str, str]:
    """Return the ``upstream`` lines of two versions, and which of them serves a device."""
    of_blue, of_green = _own("tidemark_blue", cell), _own("tidemark_green", cell)
    upstreams = _upstream(of_blue, blue)
    if weight == 0:
        return {"upstreams": upstreams, "side": of_blue, **_rates(blue)}
    upstreams += _BEHIND + _upstream(of_green, green, blue)
    if weight == _ALL:
        return {"upstreams": upstreams, "side": of_green, **_rates(green)}
    upstreams += _filled("split.conf", {"weight": str(weight)}, cell)
    return {"upstreams": upstreams, "side": _own("$tidemark_side", cell), **_rates([*blue, *green])}


def _upstream(name: str, workers: list[str], behind: Sequence[str] = ()) -> str:
    """Return a group of workers, with those that serve while none of them can be reached."""
    servers = [f"    server {worker} max_fails=0;" for worker in workers]
    servers += [f"    server {worker} max_fails=0 backup;" for worker in behind]
    balance = _ONE_HOST if len(_hosts(workers)) == 1 else _SEVERAL_HOSTS
    return _filled("upstream.conf", {"name": name, "balance": balance, "servers": "\n".join(servers)}, "")


def _rates(workers: list[str]) -> dict[str, str]:
    """Return what depends on the number of workers and of hosts."""
    count, hosts = len(workers), _hosts(workers)
    return {
        "workers": "one worker" if count == 1 else f"{count} workers",
        "handshakes": str(_HANDSHAKES_PER_S * count),
        "requests": str(_REQUESTS_PER_S * count),
        "handshakes_burst": str(_HANDSHAKES_PER_S * count * _BURST_S),
        "requests_burst": str(_REQUESTS_PER_S * count * _BURST_S),
        "hosts": " and ".join(hosts),
        "connect_timeout": "2s" if len(hosts) == 1 else "500ms",
    }


def _hosts(workers: list[str]) -> list[str]:
    return list(dict.fromkeys(worker.rpartition(":")[0] for worker in workers))


def _own(text: str, cell: str) -> str:
    """Return a text whose names are those of a cell alone, so that one nginx takes the sites of several."""
    return _SHARED_NAME.sub(rf"\g<0>_{cell}", text) if cell else text


def _filled(template: str, values: Mapping[str, str], cell: str) -> str:
    text = _own((_TEMPLATES / template).read_text("utf-8"), cell)
    return _BLANK.sub(lambda blank: values[blank[1]], text)
