"""How fast does a fleet come back behind nginx, and do the largest headers pass?

``python -m bench.tools.behind_nginx`` starts PostgreSQL, Redis, a server of two workers and nginx with the
printed site. Devices keep a socket each while the server is stopped for a while, killed with all its
processes, and restarted worker by worker; past nginx the same for comparison.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import uniform
from statistics import median
from typing import Any, Final, NamedTuple
from urllib.parse import urljoin, urlsplit

import click
import msgspec
from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, TCPConnector

from bench.harness.environment import BenchError, fresh, read_settings
from bench.harness.load_run import Target
from bench.harness.nginx import fronted, trusting
from bench.harness.product import HERE, variables
from bench.harness.server import Server, free_ports
from bench.harness.stage import add_tenants
from bench.report.statistics import counts, percentile
from bench.report.text import Columns, lines
from bench.tools.guided import Guided, versions_of
from engine.runtime.settings import Settings, SettingsError
from storage.embedded.servers import EmbeddedError

_NGINX: Final = "nginx"
_STOP, _KILL, _RENEW = "stop, {:g} s, start", "kill -9 of all, start", "rolling restart"
_TENANT: Final = "fleet"
_WORKERS: Final = 2
_OTHERS: Final = 10
_PAUSE_S: Final = (5.0, 15.0)
_HTTP_S: Final = 0.5
_TIMEOUT: Final = ClientTimeout(10.0)
_SETTLE_S: Final = 3.0
_BACK_S: Final = 150.0
_CALM_S: Final = 1.0
_BAR_S: Final = 15.0


class Way(NamedTuple):
    """How devices reach the server, past nginx or through it over TLS, and who signs their tokens."""

    name: str
    port: int
    sign: Callable[..., str]
    tls: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        """The address of the server."""
        return f"http{'' if self.tls is None else 's'}://localhost:{self.port}"

    def session(self, **more: Any) -> ClientSession:
        """Make a session for any number of devices."""
        return ClientSession(connector=TCPConnector(ssl=self.tls or True, limit=0), timeout=_TIMEOUT, **more)


class Other:
    """A device that syncs over HTTP twice a second; ``errors`` are when and what it was refused with."""

    def __init__(self, name: str, way: Way, session: ClientSession) -> None:
        self.name = name
        self.answered = 0
        self.errors: list[tuple[float, str]] = []
        self._url = f"{way.url}/v1/sync"
        self._headers = {"Authorization": f"Bearer {way.sign(name)}"}
        self._session = session

    async def run(self, wanted: Callable[[], bool] = lambda: True) -> None:
        """Sync until cancelled, or until nothing more is wanted."""
        while wanted():
            if verdict := await self._sync():
                self.errors.append((time.monotonic(), verdict))
            else:
                self.answered += 1
            await asyncio.sleep(_HTTP_S)

    async def _sync(self) -> str:
        """Send one message, the same until it is answered. Returns what it was refused with."""
        number = self.answered
        item = {"domain": "journal", "id": self.name, "op": "put", "base": number or None}
        items = [{**item, "data": {"number": number}}]
        message = {"type": "sync", "key": f"{self.name}-{number}", "items": items}
        try:
            async with self._session.post(self._url, json=message, headers=self._headers) as response:
                answer = await response.read()
        except (ClientError, OSError) as error:  # TimeoutError is one
            return type(error).__name__
        if response.status == 200:
            return ""
        with suppress(msgspec.DecodeError):
            return f"{response.status} {msgspec.json.decode(answer)['code']}"
        return str(response.status)


class Back(NamedTuple):
    """One fault: seconds until devices were live again, since the workers' return and since their own end."""

    way: str
    fault: str
    workers_away_s: float
    back_s: list[float]
    away_s: list[float]
    during: Counter[str]
    beyond: Counter[str]
    faults: list[str]


class Run(NamedTuple):
    """A server, and fleets of so many devices that see its faults."""

    server: Server
    dsn: str
    home: Path
    devices: int
    outage_s: float

    async def under(self, fault: str, way: Way) -> Back:
        """Wait until a fleet is live, inject a fault, and measure its return."""
        prefix = secrets.token_hex(4)
        async with way.session() as session:
            names = [f"{prefix}-{number}" for number in range(self.devices)]
            members = [Guided(name, self.home, way.url, way.sign(name), session) for name in names]
            others = [Other(f"{prefix}-other-{number}", way, session) for number in range(_OTHERS)]
            for member in members:
                member.write()
            works = [member.work(lambda: uniform(*_PAUSE_S)) for member in members]
            runs = [*(member.run() for member in members), *(other.run() for other in others)]
            running = [asyncio.create_task(one) for one in (*runs, *works)]
            try:
                await _all_live(members)
                await asyncio.sleep(_SETTLE_S)
                for member in members:
                    member.away_s.clear()
                begun_s = time.monotonic()
                returned_s, away_s = await self._brought_about(fault)
                await _all_live(members)
                await asyncio.sleep(_SETTLE_S)
                for task in running:
                    if task.done():
                        await task
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
        during, beyond = Counter[str](), Counter[str]()
        for at_s, verdict in (error for other in others for error in other.errors):
            (during if begun_s <= at_s <= returned_s + _CALM_S else beyond)[verdict] += 1
        return Back(
            way.name,
            fault.format(self.outage_s),
            away_s,
            sorted(max(0.0, member.live_at_s - returned_s) for member in members),
            sorted(spell for member in members for spell in member.away_s),
            during,
            beyond,
            _audit(self.dsn, members, others),
        )

    async def _brought_about(self, fault: str) -> tuple[float, float]:
        """Returns when all workers let devices in again, and for how long none did."""
        server = self.server
        if fault == _RENEW:
            await server.renew()
            return time.monotonic(), 0.0
        await (server.stop() if fault == _STOP else server.kill())
        ended_s = time.monotonic()
        await asyncio.sleep(self.outage_s if fault == _STOP else 0.0)
        await server.start()
        await server.ready()
        return time.monotonic(), time.monotonic() - ended_s


async def _all_live(members: list[Guided]) -> None:
    """Wait until each device is live. Raises BenchError."""
    deadline_s = time.monotonic() + _BACK_S
    while missing := sum(not member.live for member in members):
        if time.monotonic() > deadline_s:
            raise BenchError(f"{missing} of {len(members)} devices are not live after {_BACK_S:.0f} s")
        await asyncio.sleep(0.05)


def _audit(dsn: str, members: list[Guided], others: list[Other]) -> list[str]:
    """Compare each record's version with the pushes that were answered."""
    versions = versions_of(dsn)
    found = [fault for member in members for fault in member.faults(versions)]
    for name, count in ((other.name, other.answered) for other in others):
        # one that was under way in the end may have been stored without its answer
        if not count <= versions.get(name, 0) <= count + 1:
            found.append(f"{name}: {count} answered, version {versions.get(name, 0)}")
    return found


# -- the largest headers that the contract lets in ---------------------------------------------

_PARTS: Final = 100
_METADATA_CHARS: Final = 4096
#: Just below what a token may have.
_TOKEN_CHARS: Final = 8_000
_REPEATS: Final = 50
_TUS: Final = {"Tus-Resumable": "1.0.0"}
_PART: Final = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00\xff\xdb\x00\x43\x00"


class Head(NamedTuple):
    """One kind of request, sent often: the bytes of both heads, and what others were refused with."""

    what: str
    wanted: int
    answer: ClientResponse
    errors: Counter[str]

    @property
    def request_bytes(self) -> int:
        """How long the head of the request was."""
        sent = self.answer.request_info
        line = len(f"{sent.method} {sent.url.raw_path_qs} HTTP/1.1\r\n")
        return line + sum(len(name) + len(value) + 4 for name, value in sent.headers.items()) + 2

    @property
    def answer_bytes(self) -> int:
        """How long the head of the answer was."""
        return sum(len(name) + len(value) + 4 for name, value in self.answer.raw_headers) + 19


async def largest_heads(way: Way) -> list[Head]:
    """Send each kind of request so many times while others sync."""
    said = {"filename": "\N{DESERT}" * 255, "filetype": "image/jpeg", "domain": "journal", "record_id": "a"}
    metadata = ",".join(f"{key} {base64.b64encode(text.encode()).decode()}" for key, text in said.items())
    metadata += ",note " + "A" * (_METADATA_CHARS - len(metadata) - len(",note "))
    length = {"Upload-Length": str(len(_PART)), "Content-Type": "application/offset+octet-stream"}
    usual = {"Authorization": f"Bearer {way.sign('heads')}"}
    async with way.session(max_field_size=65_536) as session:

        async def ask(
            method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
        ) -> ClientResponse:
            url, headers = urljoin(way.url, path), {**usual, **headers}
            async with session.request(method, url, headers=headers, data=body) as response:
                await response.read()
                return response

        async def repeated(what: str, method: str, path: str, headers: Mapping[str, str]) -> Head:
            others = [Other(f"{what}-{number}", way, session) for number in range(4)]
            going = True
            running = [asyncio.create_task(other.run(lambda: going)) for other in others]
            for _ in range(_REPEATS):
                answer = await ask(method, path, headers)
                if answer.status != 200:
                    break
                await asyncio.sleep(0.02)
            going = False
            await asyncio.gather(*running)
            return Head(what, 200, answer, Counter(error for one in others for _, error in one.errors))

        parts = []
        for _ in range(_PARTS):
            created = await ask("POST", "/v1/uploads", {**_TUS, **length, "Upload-Concat": "partial"}, _PART)
            created.raise_for_status()
            parts.append(urljoin(way.url, created.headers["Location"]))
        concat = {"Upload-Concat": "final;" + " ".join(parts), "Upload-Metadata": metadata}
        joined = await ask("POST", "/v1/uploads", {**_TUS, **concat})
        joined.raise_for_status()
        final = urlsplit(joined.headers["Location"]).path
        domains = "%2C".join(f"{number:a>64}" for number in range(100))
        long = {"Authorization": f"Bearer {way.sign('heads', more='x' * (_TOKEN_CHARS * 3 // 4 - 300))}"}
        return [
            Head("POST that joins 100 parts, metadata of 4,096", 201, joined, Counter()),
            await repeated("HEAD of a final of 100 parts, metadata of 4,096", "HEAD", final, _TUS),
            await repeated("GET of its file", "GET", final.replace("uploads", "files"), {}),
            await repeated(f"token of {_TOKEN_CHARS:,} characters", "GET", "/v1/changes", long),
            await repeated("URL with 100 domains", "GET", f"/v1/changes?domains={domains}", {}),
        ]


# -- the tables --------------------------------------------------------------------------------


def _spread(found_s: Sequence[list[float]], *percents: int) -> str:
    """Write the medians of percentiles over rounds."""
    return "/".join(f"{median(percentile(each, percent) for each in found_s):.1f}" for percent in percents)


def _sum(errors: Sequence[Counter[str]]) -> Counter[str]:
    return sum(errors, Counter[str]())


#: Of all rounds of one fault on one way.
_BACKS: Final[Columns] = (
    ("way", lambda runs: runs[0].way),
    ("fault", lambda runs: runs[0].fault),
    ("workers away s", lambda runs: _spread([[run.workers_away_s] for run in runs], 100)),
    ("live again p50/p95/last s", lambda runs: _spread([run.back_s for run in runs], 50, 95, 100)),
    ("a device away p50/last s", lambda runs: _spread([run.away_s for run in runs], 50, 100)),
    ("others' errors during", lambda runs: counts(_sum([run.during for run in runs]))),
    ("beyond", lambda runs: counts(_sum([run.beyond for run in runs]))),
    ("audit", lambda runs: f"{sum(len(run.faults) for run in runs)} faults"),
)
_HEADS: Final[Columns] = (
    ("largest", lambda head: head.what),
    ("request's head", lambda head: f"{head.request_bytes:,}"),
    ("answer's head", lambda head: f"{head.answer_bytes:,}"),
    ("status", lambda head: str(head.answer.status)),
    ("others' errors", lambda head: counts(head.errors)),
)


def missed(rows: list[list[Back]], heads: list[Head]) -> list[str]:
    """Name the missed bars: those of nginx, and of what is stored on both ways."""
    found = [f"{run.way}, {run.fault}: {fault}" for row in rows for run in row for fault in run.faults]
    for row in rows:
        last_s, beyond = median(run.back_s[-1] for run in row), _sum([run.beyond for run in row])
        if row[0].way == _NGINX and last_s > _BAR_S:
            found.append(f"{row[0].fault}: the last was live after {last_s:.1f} s, the bar is {_BAR_S:g} s")
        if row[0].way == _NGINX and beyond:
            found.append(f"{row[0].fault}: others were refused: {counts(beyond)}")
    return found + [
        f"{head.what}: {head.answer.status}, others' errors {counts(head.errors)}"
        for head in heads
        if head.answer.status != head.wanted or head.errors
    ]


async def _measured(
    chosen: Settings, devices: int, rounds: int, outage_s: float
) -> tuple[list[list[Back]], list[Head]]:
    secret, port = secrets.token_urlsafe(48), free_ports(_WORKERS + 2)
    target = Target(port=port, secret=secret, tenants=[_TENANT], audience=chosen.auth.audience)
    direct = Way("direct", port, lambda device, **claims: target.token(_TENANT, device, **claims))
    backs: dict[tuple[str, str], list[Back]] = {}
    with fresh(chosen) as environment:
        dsn, home = environment.database("behind_nginx"), environment.home / "fleet"
        add_tenants(dsn, [_TENANT])
        home.mkdir()
        given = variables(environment, dsn, secret, None)
        async with HERE.server(given, _WORKERS, port) as server:
            await server.ready()
            front = port + _WORKERS + 1
            async with fronted(home, HERE.root, given, port, _WORKERS, front) as certificate:
                through = direct._replace(name=_NGINX, port=front, tls=trusting(certificate))
                heads = await largest_heads(through)
                run = Run(server, dsn, home, devices, outage_s)
                for number in range(rounds):
                    for fault in (_STOP, _KILL, _RENEW):
                        for way in (through, direct)[:: 1 if number % 2 == 0 else -1]:
                            back = await run.under(fault, way)
                            backs.setdefault((back.way, back.fault), []).append(back)
                            click.echo("\n".join(lines([[back]], _BACKS)), err=True)
    return list(backs.values()), heads


@click.command(epilog="Example: python -m bench.tools.behind_nginx --devices 500 --rounds 3 --outage 10")
@click.option("--devices", type=click.IntRange(1, 5000), default=500, show_default=True, metavar="N")
@click.option(
    "--rounds", type=click.IntRange(1), default=3, show_default=True, metavar="N", help="Medians count."
)
@click.option(
    "--outage", "outage_s", type=click.FloatRange(0), default=10.0, show_default=True, metavar="S",
    help="Seconds from the server's end to its next start, in the fault `stop`.",
)  # fmt: skip
@click.option("--data-dir", metavar="DIR", help="Where embedded services are kept while this runs.")
def main(devices: int, rounds: int, outage_s: float, data_dir: str | None) -> None:
    """Measure how long devices take to be live again behind nginx, and past it.

    Live is a device whose push was answered. Seconds count from the moment at which every worker lets devices
    in again. Devices wait as the guide says: a random time between 0 and a bound that doubles from 0.5 s to
    60 s, on top of what they were asked for. Beside them ten others sync over HTTP twice a second. The exit
    status is 1 for a missed bar.
    """
    try:
        rows, heads = asyncio.run(_measured(read_settings(None, data_dir), devices, rounds, outage_s))
    except (BenchError, EmbeddedError, SettingsError) as error:
        raise click.ClickException(str(error)) from None
    for line in (*lines(rows, _BACKS), "", *lines(heads, _HEADS)):
        click.echo(line)
    found = missed(rows, heads)
    for sentence in found:
        click.echo(f"MISSED: {sentence}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
