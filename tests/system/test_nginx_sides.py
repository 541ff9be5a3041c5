"""Blue and green behind a real nginx, with the site that ``run.py nginx --blue --green --weight`` prints."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import ClientSession, TCPConnector, web

from bench.harness.nginx import Nginx, certify, nginx_program, trusting
from bench.harness.server import free_ports
from tests.harness.fronted import printed, sides, site_at
from tests.system.test_nginx import refused

# -- what is printed --------------------------------------------------------------------------


def test_nginx_sides_weight_chooses_the_groups() -> None:
    for weight, side, groups in (
        (0, "tidemark_blue", ["tidemark_blue"]),
        (10, "$tidemark_side", ["tidemark_blue", "tidemark_green"]),
        (100, "tidemark_green", ["tidemark_blue", "tidemark_green"]),
    ):
        site = printed(*sides("10.0.0.5:8081,10.0.0.6:8081", "[fd00::7]:9081", weight))
        assert "@{" not in site
        assert re.findall(r"^upstream (\w+) ", site, re.MULTILINE) == groups
        assert set(re.findall(r"proxy_pass http://(.+);", site)) == {side}
    assert "    10%     tidemark_green;\n    *       tidemark_blue;" in printed(*sides("a:1", "b:1", 10))


def test_nginx_sides_blue_stands_behind_green_and_never_the_other_way() -> None:
    site = printed(*sides("a:1,a:2", "b:1", 10))
    blue, green = re.findall(r"^upstream .*?^}", site, re.MULTILINE | re.DOTALL)
    assert re.findall(r"server (.*) max_fails=0( backup)?;", blue) == [("a:1", ""), ("a:2", "")]
    of_green = [("b:1", ""), ("a:1", " backup"), ("a:2", " backup")]
    assert re.findall(r"server (.*) max_fails=0( backup)?;", green) == of_green


def test_nginx_sides_unusable_options_refused_in_a_sentence() -> None:
    assert "belong together" in refused("--blue", "a:1", "--weight", "10")
    assert "belong together" in refused("--weight", "10")
    assert "name all workers" in refused(*sides("a:1", "b:1", 10), "--workers", "2")
    assert "no HOST:PORT" in refused(*sides("a:1,", "b:1", 10))
    assert "no HOST:PORT" in refused(*sides("a:1", "b:70000", 10))
    assert "of --blue, too" in refused(*sides("a:1,b:1", "b:1", 10))
    assert "0<=x<=100" in refused(*sides("a:1", "b:1", 101))


# -- in nginx ---------------------------------------------------------------------------------


class Front:
    """nginx before two servers that only say which one they are."""

    def __init__(self, home: Path, stack: AsyncExitStack) -> None:
        self.port = free_ports(3)
        self.stack = stack
        self._home = home
        program = nginx_program()
        assert program is not None
        self.nginx = Nginx(program, home, site_at(home, self.port, *self.sides(10)), self.port)
        self._runners: dict[str, web.AppRunner] = {}
        connector = TCPConnector(ssl=trusting(home / "certificate.pem"), limit=20)
        self.session = ClientSession(connector=connector)

    def sides(self, weight: int) -> tuple[str, ...]:
        """The options of a weight."""
        return sides(f"127.0.0.1:{self.port + 1}", f"127.0.0.1:{self.port + 2}", weight)

    async def weigh(self, weight: int) -> None:
        """Give another weight."""
        await self.nginx.reload(site_at(self._home, self.port, *self.sides(weight)))

    async def serve(self, side: str, port: int) -> None:
        """Start a server that says which side it is."""

        async def answer(_: web.Request) -> web.Response:
            return web.Response(text=side)

        application = web.Application()
        application.router.add_route("*", "/{path:.*}", answer)
        runner = self._runners[side] = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        self.stack.push_async_callback(runner.cleanup)

    async def stop(self, side: str) -> None:
        """Stop a server."""
        await self._runners[side].cleanup()

    async def side(self, path: str = "/healthz", **headers: str) -> str:
        """Ask, and give the side that answered."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.get(self.nginx.url + path, headers=named) as response:
            return await response.text()

    async def of_devices(self, count: int) -> dict[str, str]:
        """The side of each of so many devices, by its token."""
        tokens = [f"e.device-{number}.signature" for number in range(count)]
        found = await asyncio.gather(*(self.side(Authorization=f"Bearer {one}") for one in tokens))
        return dict(zip(tokens, found, strict=True))


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    """Blue, green, and nginx with a weight of 10."""
    if nginx_program() is None:
        pytest.skip("nginx is not installed")
    certify(tmp_path)
    async with AsyncExitStack() as stack:
        made = Front(tmp_path, stack)
        await made.serve("blue", made.port + 1)
        await made.serve("green", made.port + 2)
        stack.push_async_callback(made.session.close)
        stack.push_async_callback(made.nginx.stop)
        await made.nginx.start()
        yield made


def test_nginx_sites_of_cells_stand_in_one_nginx(tmp_path: Path) -> None:
    program = nginx_program()
    if program is None:
        pytest.skip("nginx is not installed")
    certify(tmp_path)
    of_sides = sides("127.0.0.1:9181", "127.0.0.1:9281", 10)
    alone = ("--server-name", "localhost")
    cells = [("", alone, 0), ("north", alone, 1), ("blue_north", alone, 2), ("north_blue", of_sides, 3)]
    cells.append(("blue", of_sides, 4))
    sites = [
        site_at(tmp_path, 9443 + number, *chosen, TIDEMARK__POSTGRES__SCHEMA=cell)
        for cell, chosen, number in cells
    ]
    assert "test is successful" in Nginx(program, tmp_path, "".join(sites), 9443).tested()
    assert "_north" not in sites[0]


async def test_nginx_sides_shares_are_as_asked_and_a_device_moves_once(front: Front) -> None:
    devices = 400
    found = {}
    for weight in (10, 50, 100, 0):
        if weight != 10:
            await front.weigh(weight)
        found[weight] = await front.of_devices(devices)
        share = Counter(found[weight].values())["green"] / devices
        # Six standard deviations of a fair draw.
        assert abs(share - weight / 100) <= 6 * (weight * (100 - weight) / devices) ** 0.5 / 100, share
    on_green = {
        weight: {name for name, side in sides.items() if side == "green"} for weight, sides in found.items()
    }
    assert on_green[10] < on_green[50] < on_green[100]


async def test_nginx_sides_one_device_one_side_whatever_it_asks(front: Front) -> None:
    await front.weigh(50)
    for number in range(10):
        given = f"e.device-{number}.signature"
        asked = [
            {"Authorization": f"Bearer {given}"},
            {"Authorization": f"bearer  {given}"},
            {"Sec_WebSocket_Protocol": f"tidemark.v1.json, bearer.{given}"},
            {"Sec_WebSocket_Protocol": f"bearer.{given},tidemark.v1.json"},
        ]
        paths = "/v1/sync", "/v1/changes", "/v1/uploads", f"/v1/files/{number}", "/docs"
        found = {
            await front.side(path, **headers) for headers in asked for path in paths[: 1 + 4 * (number < 3)]
        }
        assert len(found) == 1


async def test_nginx_sides_green_away_its_devices_go_to_blue(front: Front) -> None:
    before = await front.of_devices(100)
    assert set(before.values()) == {"blue", "green"}
    await front.stop("green")
    assert set((await front.of_devices(100)).values()) == {"blue"}


async def test_nginx_sides_blue_away_green_gets_no_more_than_its_share(front: Front) -> None:
    before = await front.of_devices(100)
    await front.stop("blue")
    after = await front.of_devices(100)
    assert {name for name, said in after.items() if said == "green"} == {
        name for name, said in before.items() if said == "green"
    }
