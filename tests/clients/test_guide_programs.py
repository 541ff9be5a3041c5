"""The blocks in Python and in JavaScript of the guide for people who write a device, run as they stand."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import textwrap
from pathlib import Path

import pytest

from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.uploads.tus_uploader import photo
from tests.harness.ws_device import Json, item

pytestmark = ON_SHARED

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "device-guide.md").read_text("utf-8")
#: Of clients of others, which tests/clients/test_upload_guide.py runs.
_OF_OTHERS = ("const upload", "import hashlib")
_SAID = "set aside: invalid_item\nversion 2: INPROGRESS\nsettled: 1\n"

_PYTHON = """
import os

server = os.environ["server"]
signed_in = lambda: os.environ["token"]

async def main():
    {early}
    device.edit("note", "held", "put", {{"by": "device"}})
{blocks}
    running.cancel()
    await asyncio.wait([running])
    await device._session.close()

import asyncio
asyncio.run(main())
"""
_JAVASCRIPT = """
const server = process.env.server
const signed_in = async () => process.env.token
process.chdir(process.env.home)
{early}
await device.edit('note', 'held', 'put', {{ by: 'device' }})
{blocks}
console.log('bytes:', blob.size)
await device.stop()
"""
#: A person looks at the record when its file is there.
_HEARD_OF = """
const noFile = () => !device.record('task', 'pump-3').files.length
while (noFile()) await new Promise((done) => setTimeout(done, 20))
"""


def blocks_of(language: str) -> list[str]:
    """The page's blocks of a language that use the device of this repository."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    return [str(code) for code in found if not code.startswith(_OF_OTHERS)]


async def ran(*command: str, server: Running, cwd: Path, home: Path) -> str:
    """Run a program on the server. Returns what it printed."""
    environment = {**os.environ, "server": server.url, "token": server.token(), "home": str(home)}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=environment | {"PYTHONPATH": str(ROOT)}, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    return said.decode()


@pytest.fixture
def held() -> Json:
    """A record on which the device's own change waits for a person."""
    return item("put", "note", "held", data={"by": "office"})


async def test_device_guide_python_program_runs(shared: Running, held: Json, tmp_path: Path) -> None:
    await (await shared.device("office")).push(held)
    early, *blocks = [textwrap.indent(code, "    ") for code in blocks_of("python")]
    assert len(blocks) == 4
    program = _PYTHON.format(early=early.lstrip(), blocks="".join(blocks))
    assert await ran(sys.executable, "-c", program, server=shared, cwd=tmp_path, home=tmp_path) == _SAID


async def test_device_guide_javascript_program_runs(
    shared: Running, held: Json, node_packages: Path, tmp_path: Path
) -> None:
    await (await shared.device("office")).push(held)
    (tmp_path / "gate.jpg").write_bytes(photo(3000))
    early, *blocks = blocks_of("js")
    assert len(blocks) == 6
    blocks.insert(-1, _HEARD_OF)
    early = early.replace("'./", f"'{ROOT}/docs/examples/")
    program = _JAVASCRIPT.format(early=early, blocks="".join(blocks))
    command = "node", "--input-type=module", "--eval", program
    said = await ran(*command, server=shared, cwd=node_packages, home=tmp_path)
    assert said == _SAID + "bytes: 3000\n"
