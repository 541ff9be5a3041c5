"""What the guide for people who write a device says of files, done as it stands."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.device import item
from tests.serving import Running
from tests.uploading import photo

GUIDE = (Path(__file__).parent.parent / "docs" / "device-guide.md").read_text("utf-8")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_a_file_goes_up_and_comes_with_its_record(server: Running, tmp_path: Path) -> None:
    content = photo(5000)
    (tmp_path / "gate.jpg").write_bytes(content)
    (commands,) = re.findall(r"^```sh\n(meta=.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    environment = {**os.environ, "server": server.url, "token": server.token()}
    shell = await asyncio.create_subprocess_exec(
        "sh", "-euc", commands, cwd=tmp_path, env=environment, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await shell.communicate()
    assert (shell.returncode, said) == (0, b"")

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
