"""What the guide for people who write a device says of files, done as it stands."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.device import item
from tests.serving import Running
from tests.tus_js import TusJs
from tests.uploading import photo

GUIDE = (Path(__file__).parent.parent / "docs" / "device-guide.md").read_text("utf-8")


def fenced(language: str, beginning: str) -> str:
    """The one example of a language that begins so."""
    (code,) = re.findall(rf"^```{language}\n({beginning}.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    return str(code)


async def run(*command: str, server: Running, cwd: Path) -> bytes:
    """Run a program that finds server and token in its environment; gives what it said."""
    environment = {**os.environ, "server": server.url, "token": server.token()}
    program = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=environment, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await program.communicate()
    assert program.returncode == 0
    return said


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_a_file_goes_up_and_comes_with_its_record(server: Running, tmp_path: Path) -> None:
    content = photo(5000)
    (tmp_path / "gate.jpg").write_bytes(content)
    by_tus, by_the_draft = fenced("sh", "meta="), fenced("sh", "curl ")
    said = await run("sh", "-euc", by_tus + by_the_draft, server=server, cwd=tmp_path)
    assert said == b"", "by the draft it is the same file once more"

    office = await server.device("office")
    assert (await office.told("changes", "subscribe"))["changes"] == []
    await (await server.device()).push(item("put", "journal", "j1", data={"text": "gate open"}))
    while True:
        (change,) = (await office.changes())["changes"]
        if "attachments" in change:
            break
    (file,) = change["attachments"]
    assert (file["filename"], file["filetype"], file["size_bytes"]) == ("gate.jpg", "image/jpeg", 5000)
    reply = await server.get(f"/v1/files/{file['file_id']}", "office")
    assert (reply.status, reply.body) == (200, content)


async def test_a_file_goes_up_with_tus_js_client(server: Running, tus_js: TusJs, tmp_path: Path) -> None:
    content = photo(600_000)
    (tmp_path / "gate.jpg").write_bytes(content)
    given = f"""
        import {{ readFileSync }} from 'node:fs'
        import * as tus from 'tus-js-client'
        const {{ server, token }} = process.env
        const file = readFileSync({json.dumps(str(tmp_path / "gate.jpg"))})
    """
    code = given + fenced("js", "const upload")
    await run("node", "--input-type=module", "--eval", code, server=server, cwd=tus_js.home)
    await arrived(server, content)


async def test_a_file_goes_up_with_tuspy(server: Running, tmp_path: Path) -> None:
    content = photo(600_000)
    (tmp_path / "gate.jpg").write_bytes(content)
    given = 'import os\nserver, token = os.environ["server"], os.environ["token"]\n'
    await run(sys.executable, "-c", given + fenced("python", "from tus"), server=server, cwd=tmp_path)
    await arrived(server, content)


async def arrived(server: Running, content: bytes) -> None:
    """See that the record has the file."""
    await (await server.device()).push(item("put", "journal", "j1", data={"text": "gate open"}))
    office = await server.device("office")
    while True:
        (change,) = (await office.told("changes", "pull"))["changes"]
        if "attachments" in change:
            break
    (file,) = change["attachments"]
    assert (await server.get(f"/v1/files/{file['file_id']}", "office")).body == content
