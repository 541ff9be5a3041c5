"""Scenario ``behind_nginx``: how fast a fleet comes back behind nginx, and whether the largest headers pass.

Devices keep a socket each to a server of two workers while it is stopped for a while, killed with all its
processes, and restarted worker by worker; past nginx the same for comparison. Beside them ten others sync
over HTTP twice a second. Live is a device whose push was answered. Seconds count from the moment at which
every worker lets devices in again.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import uniform
from statistics import median
from typing import Any, Final, NamedTuple
from urllib.parse import urljoin, urlsplit

import msgspec
from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, TCPConnector

from bench.harness.audit import Audit
from bench.harness.environment import BenchError, fresh
from bench.harness.load_run import Target
from bench.harness.nginx import fronted, trusting
from bench.harness.product import HERE, variables
from bench.harness.progress import progress
from bench.harness.server import Server, free_ports
from bench.harness.stage import Options, add_tenants
from bench.report.results import Bar, Figure, Report
from bench.report.statistics import counts, percentile
from bench.scenarios.guided import Guided, beside, versions_of

_NGINX: Final = "nginx"
_STOP, _KILL, _RENEW = "stop, wait, start", "kill -9 of all, start", "rolling restart"
_TENANT: Final = "fleet"
ROUNDS: Final = 3
#: From the server's end to its next start, in the fault ``_STOP``.
OUTAGE_S: Final = 10.0
WORKERS: Final = 2
_OTHERS: Final = 10
_PAUSE_S: Final = (5.0, 15.0)
_HTTP_S: Final = 0.5
_TIMEOUT: Final = ClientTimeout(10.0)
_SETTLE_S: Final = 3.0
_BACK_S: Final = 150.0
_CALM_S: Final = 1.0
_BAR_S: Final = 15.0


#: The largest that the contract lets in: parts of an upload, its metadata, and a token, just below the bound.
_PARTS: Final = 100
_METADATA_CHARS: Final = 4096
_TOKEN_CHARS: Final = 8_000
_REPEATS: Final = 50
_TUS: Final = {"Tus-Resumable": "1.0.0"}
_PART: Final = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00\xff\xdb\x00\x43\x00"
LAST: Final = "live again, the last"


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

    def faults(self, versions: Mapping[str, int]) -> Iterator[str]:
        """Compare how often it was answered with the version in the tables."""
        version = versions.get(self.name, 0)
        # one that was under way in the end may have been stored without its answer
        if not self.answered <= version <= self.answered + 1:
            yield f"{self.name}: {self.answered} answered, version {version}"


class Back(NamedTuple):
    """One fault: seconds by name, what others were refused with, and what is not stored as answered."""

    seconds: dict[str, float]
    during: Counter[str]
    beyond: Counter[str]
    answered: int
    faults: list[str]


async def _under(
    fault: str, way: Way, server: Server, dsn: str, home: Path, devices: int, outage_s: float
) -> Back:
    """Wait until a fleet is live, inject a fault, and measure its return."""
    prefix = secrets.token_hex(4)
    async with way.session() as session:
        names = [f"{prefix}-{number}" for number in range(devices)]
        members = [Guided(name, home, way.url, way.sign(name), session) for name in names]
        others = [Other(f"{prefix}-other-{number}", way, session) for number in range(_OTHERS)]
        both: list[Guided | Other] = [*members, *others]
        for member in members:
            member.write()
        works = [member.work(lambda: uniform(*_PAUSE_S)) for member in members]
        async with beside(*(each.run() for each in both), *works):
            await _all_live(members)
            await asyncio.sleep(_SETTLE_S)
            for member in members:
                member.away_s.clear()
            begun_s = time.monotonic()
            returned_s, away_s = await _brought_about(fault, server, outage_s)
            await _all_live(members)
            await asyncio.sleep(_SETTLE_S)
    during, beyond = Counter[str](), Counter[str]()
    for at_s, verdict in (error for other in others for error in other.errors):
        (during if begun_s <= at_s <= returned_s + _CALM_S else beyond)[verdict] += 1
    back_s = sorted(max(0.0, member.live_at_s - returned_s) for member in members)
    spells_s = sorted(spell for member in members for spell in member.away_s)
    seconds = {
        "no worker": away_s,
        "live again, p50": percentile(back_s, 50),
        "live again, p95": percentile(back_s, 95),
        LAST: back_s[-1],
        "a device away, p50": percentile(spells_s, 50),
        "a device away, at most": percentile(spells_s, 100),
    }
    answered, versions = sum(each.answered for each in both), versions_of(dsn)
    faults = [fault for each in both for fault in each.faults(versions)]
    return Back(seconds, during, beyond, answered, faults)


async def _brought_about(fault: str, server: Server, outage_s: float) -> tuple[float, float]:
    """Returns when all workers let devices in again, and for how long none did."""
    if fault == _RENEW:
        await server.renew()
        return time.monotonic(), 0.0
    await (server.stop() if fault == _STOP else server.kill())
    ended_s = time.monotonic()
    await asyncio.sleep(outage_s if fault == _STOP else 0.0)
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


def head_bar(what: str, wanted: int, answer: ClientResponse, errors: Counter[str]) -> Bar:
    """Make the bar of one kind of request: that it passes, and costs others nothing."""
    sent = answer.request_info
    asked_bytes = len(f"{sent.method} {sent.url.raw_path_qs} HTTP/1.1\r\n") + _size_bytes(
        sent.headers.items()
    )
    answer_bytes = len("HTTP/1.1 200 OK\r\n") + _size_bytes(answer.headers.items())
    beside = f"{asked_bytes:,} bytes, answered by {answer_bytes:,}: {answer.status}; {counts(errors)}"
    failed = (answer.status != wanted) + errors.total()
    return Bar(f"{what}: refused, or errors of others", failed, "at most", 0, "", beside)


def _size_bytes(headers: Iterable[tuple[str, str]]) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers) + 2


async def largest_heads(way: Way) -> list[Bar]:
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

        async def repeated(what: str, method: str, path: str, headers: Mapping[str, str]) -> Bar:
            others = [Other(f"beside-{secrets.token_hex(4)}", way, session) for _ in range(4)]
            going = True
            running = [asyncio.create_task(other.run(lambda: going)) for other in others]
            for _ in range(_REPEATS):
                answer = await ask(method, path, headers)
                if answer.status != 200:
                    break
                await asyncio.sleep(0.02)
            going = False
            await asyncio.gather(*running)
            return head_bar(what, 200, answer, Counter(error for one in others for _, error in one.errors))

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
            head_bar("POST that joins 100 parts, metadata of 4,096", 201, joined, Counter()),
            await repeated("HEAD of a final of 100 parts, metadata of 4,096", "HEAD", final, _TUS),
            await repeated("GET of its file", "GET", final.replace("uploads", "files"), {}),
            await repeated(f"token of {_TOKEN_CHARS:,} characters", "GET", "/v1/changes", long),
            await repeated("URL with 100 domains", "GET", f"/v1/changes?domains={domains}", {}),
        ]


def judge(report: Report, way: str, fault: str, runs: Sequence[Back]) -> None:
    """Add the figures of a fault on a way, medians of the rounds, and the bars of nginx."""
    during, beyond = (sum(each, Counter[str]()) for each in zip(*(run[1:3] for run in runs), strict=True))
    for name in runs[0].seconds:
        figure = Figure(f"{way}, {fault}: {name}", median(run.seconds[name] for run in runs), "s")
        report.figures.append(figure)
        if way == _NGINX and name == LAST:
            report.bars.append(Bar(figure.name, figure.value, "at most", _BAR_S, "s"))
    report.figures += [
        Figure(f"{way}, {fault}: errors of others during it", during.total(), "", counts(during)),
        Figure(f"{way}, {fault}: errors of others beyond it", beyond.total(), "", counts(beyond)),
    ]
    if way == _NGINX:
        name = f"{fault}: errors of others beyond it"
        report.bars.append(Bar(name, beyond.total(), "at most", 0, "", counts(beyond)))


async def behind_nginx(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    rounds, outage_s = options.rounds or ROUNDS, options.duration_s or OUTAGE_S
    work = f"{options.connections} devices, {rounds} rounds of each fault, {outage_s:g} s from stop to start"
    report = Report(scenario="behind_nginx", work=work)
    secret, port = secrets.token_urlsafe(48), free_ports(WORKERS + 2)
    target = Target(port=port, secret=secret, tenants=[_TENANT], audience=options.settings.audience)
    direct = Way("direct", port, lambda device, **claims: target.token(_TENANT, device, **claims))
    backs: dict[tuple[str, str], list[Back]] = {}
    with fresh(options.settings) as environment:
        dsn, home = environment.database("behind_nginx"), environment.home / "fleet"
        add_tenants(dsn, [_TENANT])
        home.mkdir()
        given = variables(environment, dsn, secret, options.config)
        async with HERE.server(given, WORKERS, port) as server:
            await server.ready()
            front = port + WORKERS + 1
            async with fronted(home, HERE.root, given, port, WORKERS, front) as certificate:
                through = direct._replace(name=_NGINX, port=front, tls=trusting(certificate))
                report.bars += await largest_heads(through)
                for number in range(rounds):
                    for fault in (_STOP, _KILL, _RENEW):
                        for way in (through, direct)[:: 1 if number % 2 == 0 else -1]:
                            back = await _under(fault, way, server, dsn, home, options.connections, outage_s)
                            backs.setdefault((way.name, fault), []).append(back)
                            progress(f"round {number + 1}, {way.name}, {fault}: {back.seconds}")
            report.logged = dict(server.logged)
    for (name, fault), runs in backs.items():
        judge(report, name, fault, runs)
    faults = [fault for runs in backs.values() for run in runs for fault in run.faults]
    answered = sum(run.answered for runs in backs.values() for run in runs)
    report.audit = Audit(answered, answered, 1, len(faults), faults)
    return report
