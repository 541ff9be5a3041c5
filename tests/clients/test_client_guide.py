"""The exchanges of the guide for people who write a device, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
from aiohttp import WSMsgType

from bench.client.device import remedy
from engine.wire.errors import ERRORS
from tests.harness.in_process_server import ON_SHARED, Running

pytestmark = ON_SHARED

GUIDE = (Path(__file__).parents[2] / "docs" / "device-guide.md").read_text("utf-8")


async def test_device_guide_exchanges_run_as_written(shared: Running) -> None:
    blocks = re.findall(r"^```text\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) > 14
    device = await shared.device("phone")
    heard = [device.welcome]
    for line in lines:
        mark, _, text = line.partition(" ")
        if mark == ">":
            await device.send_frame(text.encode(), WSMsgType.TEXT)
            continue
        said = heard.pop() if heard else await device.receive()
        pattern = re.escape(text).replace("…", ".*")
        assert re.fullmatch(pattern, msgspec.json.encode(said).decode()), f"{said}\nis not\n{text}"


async def test_device_guide_every_error_has_a_remedy() -> None:
    for code, kind in ERRORS.items():
        if kind.http is not None and code != "unknown_type":
            assert f"`{code}`" in GUIDE, code


async def test_device_guide_close_codes_equal_the_reference_device() -> None:
    rows = re.findall(r"^\| (.*?) \| (.*?) \|$", GUIDE, re.MULTILINE)
    told = {int(code): what for cell, what in rows for code in re.findall(r"\b\d{4}\b", cell)}
    words = {"again": "come back", "stop": "stop", "token": "fresh token", "wait": "quiet for a minute"}
    words["once"] = "come back once"
    for code, what in told.items():
        if code != 1009:
            assert words[remedy(code)] in what, code
    assert told.keys() == {1001, 1006, 1009, 1012, 4400, 4401, 4403, 4408, 4409, 4429, 4503}
