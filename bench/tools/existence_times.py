"""Whether the time of an answer tells what another has: ``python -m bench.tools.existence_times``.

A device asks for things of another tenant, of another device, and for what does not exist, which are answered
alike. Both are asked by turns, in an order that is drawn, one request at a time on one connection. The ratio
is that of the medians, another's to nothing's; its interval holds 95 % of the ratios of resampled times
(bootstrap). An interval that has 1 in it shows no difference. Other load of the machine widens it.
"""

from __future__ import annotations

import asyncio
import base64
import random
import secrets
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, Final, NamedTuple

import click
import msgspec
from aiohttp import ClientSession

from bench.harness.environment import BenchError, Environment, fresh, read_settings
from bench.harness.load_run import Target
from bench.harness.product import product
from bench.harness.stage import add_tenants
from bench.report.statistics import Ratio, percentile, ratio_of
from bench.report.text import table
from storage.postgres.blocking import connected

ATTACKER, VICTIM = "bench-attacker", "bench-victim"
#: Devices that ask, in turn: each may send 6,000 messages a minute.
_DEVICES: Final = 8
_WARMUP: Final = 20
_TUS: Final = {"Tus-Resumable": "1.0.0"}
_CHUNK: Final = _TUS | {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
_JSON: Final = {"Content-Type": "application/json"}
_RESOLUTION: Final = b'{"choice":"client","version":1}'
#: As far as its first bytes tell.
_PICTURE: Final = bytes.fromhex(
    "ffd8 ffe00010 4a46494600 0101 00 0001 0001 0000 ffda0008 01 0100 003f00"
) + bytes(480)
_RECORD: Final = "pump-1"
_DELETION: Final = b'{"type":"sync","key":"{key}","items":[{"domain":"task","id":"{id}","op":"delete"}]}'


class Look(NamedTuple):
    """A request for something by its id. ``path`` and ``body`` have ``{id}`` where the id belongs."""

    method: str
    path: str
    headers: Mapping[str, str] = {}
    body: bytes | None = None


LOOKS: Final = {
    "record": Look("POST", "/v1/sync", _JSON, _DELETION),
    "conflict": Look("POST", "/v1/conflicts/{id}/resolution", _JSON, _RESOLUTION),
    "upload": Look("HEAD", "/v1/uploads/{id}", _TUS),
    "append": Look("PATCH", "/v1/uploads/{id}", _CHUNK, b"abc"),
    "file": Look("GET", "/v1/files/{id}"),
}


class Times(NamedTuple):
    """Seconds that answers took, of both in the same order of asking."""

    another_s: list[float]
    nothing_s: list[float]

    def ratio(self) -> Ratio:
        """Return the ratio of the medians, and its interval."""
        return ratio_of(self.nothing_s, self.another_s, rate=False, paired=False)


class _Device(NamedTuple):
    http: ClientSession
    url: str
    token: str

    async def ask(self, look: Look, name: str) -> tuple[int, bytes, Mapping[str, str]]:
        """Ask for a thing by its id."""
        body = look.body and look.body.replace(b"{id}", name.encode()).replace(
            b"{key}", secrets.token_hex(16).encode()
        )
        headers = {"Authorization": f"Bearer {self.token}", **look.headers}
        url = self.url + look.path.replace("{id}", name)
        async with self.http.request(look.method, url, headers=headers, data=body) as answer:
            return answer.status, await answer.read(), answer.headers

    async def sync(self, **fields: Any) -> dict[str, Any]:
        """Send an item. Returns its result."""
        body = {
            "type": "sync",
            "key": secrets.token_hex(16),
            "items": [{"domain": "task", "op": "put", **fields}],
        }
        status, told, _ = await self.ask(Look("POST", "/v1/sync", _JSON, msgspec.json.encode(body)), "")
        if status != 200:
            raise BenchError(f"what is looked for could not be made: {status} {told.decode()}")
        result: dict[str, Any] = msgspec.json.decode(told)["results"][0]
        return result

    async def upload(self, size_bytes: int) -> str:
        """Begin an upload, and finish it if it has the size of the picture. Returns its id."""
        told = {"filename": "a.jpg", "filetype": "image/jpeg", "domain": "task", "record_id": _RECORD}
        metadata = ",".join(f"{key} {base64.b64encode(text.encode()).decode()}" for key, text in told.items())
        headers = _TUS | {"Upload-Length": str(size_bytes), "Upload-Metadata": metadata}
        status, said, answered = await self.ask(Look("POST", "/v1/uploads", headers), "")
        if status != 201:
            raise BenchError(f"an upload was refused: {status} {said.decode()}")
        name = answered["Location"].rpartition("/")[2]
        if size_bytes == len(_PICTURE):
            await self.ask(Look("PATCH", "/v1/uploads/{id}", _CHUNK, _PICTURE), name)
            status, _, _ = await self.ask(LOOKS["file"], name)
            if status != 200:
                raise BenchError(f"its owner is not given the file: {status}")
        return name


async def _seeded(owner: _Device, other: _Device) -> dict[str, str]:
    """Make one of each thing, by the name of its look."""
    await owner.sync(id=_RECORD, data={"n": 1})
    conflict = await other.sync(id=_RECORD, data={"n": 2})
    begun = await owner.upload(1_000)
    return {
        "record": _RECORD,
        "conflict": conflict["conflict_id"],
        "upload": begun,
        "append": begun,
        "file": await owner.upload(len(_PICTURE)),
    }


def _nothing(name: str) -> str:
    """Make an id of the same form that nobody has."""
    return "".join("0" if one == "-" else random.choice("0123456789abcdef") for one in name)  # no secret


async def measure(look: Look, name: str, devices: Sequence[_Device], rounds: int) -> Times:
    """Ask for a thing and for nothing by turns. Raises BenchError if the answers differ."""
    times = Times([], [])
    for number in range(_WARMUP + rounds):
        device = devices[number % len(devices)]
        statuses: set[int] = set()
        for which, took_s in sorted(enumerate(times), key=lambda _: random.random()):  # no secret
            wanted = name if which == 0 else _nothing(name)
            began_s = perf_counter()
            status, _, _ = await device.ask(look, wanted)
            if number >= _WARMUP:
                took_s.append(perf_counter() - began_s)
            statuses.add(status)
        if len(statuses) > 1:
            raise BenchError(f"{look.method} {look.path}: the answers differ: {statuses}")
    return times


async def _measure(rounds: int, environment: Environment) -> None:
    dsn, secret = environment.database("existence"), secrets.token_urlsafe(48)
    add_tenants(dsn, [ATTACKER, VICTIM])
    with connected(dsn) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tenant_conflict_policy (tenant_id, domain, policy)"
            " SELECT tenant_id, 'task', 'manual' FROM tenants"
        )
    lines = [
        ["asked for", "of another", "p50 ms", "p95 ms", "of nothing p50", "p95", "ratio", "95 % interval"]
    ]
    async with product(environment, dsn, secret, None, 1) as server, ClientSession() as http:
        target = Target(port=server.port, secret=secret, tenants=[ATTACKER, VICTIM])
        url = f"http://{target.host}:{target.port}"

        def device(name: str, tenant: str) -> _Device:
            return _Device(http, url, target.token(tenant, name))

        devices = [device(f"asks-{number}", ATTACKER) for number in range(_DEVICES)]
        for owner, tenant in (("tenant", VICTIM), ("device", ATTACKER)):
            seeded = await _seeded(device("owner", tenant), device("other", tenant))
            for kind, look in LOOKS.items():
                if owner == "device" and kind in ("record", "file"):
                    continue  # all devices of a tenant have these
                times = await measure(look, seeded[kind], devices, rounds)
                ratio = times.ratio()
                figures = [
                    f"{1000 * percentile(sorted(one), percent):.2f}" for one in times for percent in (50, 95)
                ]
                lines.append(
                    [kind, owner, *figures, f"{ratio.value:.3f}", f"{ratio.low:.3f} to {ratio.high:.3f}"]
                )
    click.echo("\n".join(table(lines)))


@click.command(epilog="Example: python -m bench.tools.existence_times --rounds 500")
@click.option(
    "--rounds", default=500, show_default=True, help="Requests of each kind, for a thing and for nothing."
)
def main(rounds: int) -> None:
    """Compare the times of answers about what is another's with those about nothing."""
    with fresh(read_settings(None, None)) as environment:
        asyncio.run(_measure(rounds, environment))


if __name__ == "__main__":
    main()
