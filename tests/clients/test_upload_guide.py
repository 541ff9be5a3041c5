"""What the guide for people who write a device says of files, done as it stands."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.harness.in_process_server import Running
from tests.harness.uploads.tus_js import TusJs
from tests.harness.uploads.tus_uploader import encoded, photo, uploader
from tests.harness.ws_device import Json, item

GUIDE = (Path(__file__).parents[2] / "docs" / "device-guide.md").read_text("utf-8")


def fenced(language: str, beginning: str) -> str:
    """The one example of a language that begins so."""
    (code,) = re.findall(rf"^```{language}\n({beginning}.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    return str(code)


async def run(*command: str, server: Running, cwd: Path, **given: str) -> bytes:
    """Run a program that finds server, token and what is given in its environment; gives what it said."""
    environment = {**os.environ, "server": server.url, "token": server.token(), **given}
    program = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=environment, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await program.communicate()
    assert program.returncode == 0
    return said


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_guide_code_uploads_and_shows_with_the_record(server: Running, tmp_path: Path) -> None:
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


class Guided:
    """The guide's code for one client, on one file, and the addresses that this client remembers.

    Each run is a program of its own, as an app is that was started again.
    """

    def __init__(self, server: Running, directory: Path, node: Path) -> None:
        self.content = photo(600_000, 1)
        self.metadata = {"filename": "gate.jpg", "filetype": "image/jpeg", "domain": "journal"}
        self.phone = uploader(server)
        self._server = server
        self._directory = directory
        self._node = node
        self._urls = directory / "uploads.json"
        self._file = directory / "gate.jpg"
        self._file.write_bytes(self.content)

    async def javascript(self, record_id: str) -> None:
        """Run that for tus-js-client."""
        given = f"""
            import {{ readFileSync }} from 'node:fs'
            import * as tus from 'tus-js-client'
            const {{ server, token, domain, record_id }} = process.env
            const file = readFileSync({json.dumps(str(self._file))})
            tus.defaultOptions.urlStorage = new tus.FileUrlStorage({json.dumps(str(self._urls))})
        """
        command = ("node", "--input-type=module", "--eval", given + fenced("js", "const upload"))
        await run(*command, server=self._server, cwd=self._node, domain="journal", record_id=record_id)

    async def python(self, record_id: str) -> None:
        """Run that for tuspy."""
        names = ("server", "token", "domain", "record_id")
        given = f"import os\n{', '.join(names)} = map(os.environ.get, {names})\n"
        command = (sys.executable, "-c", given + fenced("python", "import hashlib"))
        await run(*command, server=self._server, cwd=self._directory, domain="journal", record_id=record_id)

    def remember(self, remembered: Mapping[str, str]) -> None:
        """Have both clients remember uploads of the file by their records, as they write it down."""
        md5 = hashlib.md5(self.content[:65_536], usedforsecurity=False).hexdigest()
        key = f"tus::node-buffer-{md5}-{len(self.content)}-{self._server.url}/v1/uploads::"
        sha256 = hashlib.sha256(self.content).hexdigest()
        urls: Json = {}
        entries: Json = {}
        for number, (record_id, path) in enumerate(remembered.items()):
            url = self._server.url + path
            metadata = self.metadata | {"record_id": record_id}
            urls[f"{key}{number}"] = {"size": len(self.content), "metadata": metadata, "uploadUrl": url}
            entries[str(number + 1)] = {"key": f"journal/{record_id}/{sha256}", "url": url}
        self._urls.write_text(json.dumps(urls | {"_default": entries}))

    async def begun(self, record_id: str, content: bytes) -> str:
        """Begin an upload of the file, as a run of the app that was killed; gives its path."""
        said = encoded(self.metadata | {"record_id": record_id})
        return await self.phone.begun(len(self.content), content, upload_metadata=said)

    async def push(self, *record_ids: str) -> None:
        """Push records, so that each file is in its record's entry as soon as it is whole."""
        items = [item("put", "journal", record_id, data={"text": "open"}) for record_id in record_ids]
        await (await self._server.device()).push(*items)

    async def files(self) -> dict[str, list[str]]:
        """Give the ids of each record's files, all of which have to be the file."""
        files: dict[str, list[str]] = {}
        for change in (await (await self._server.device("office")).told("changes", "pull"))["changes"]:
            files[change["id"]] = [file["file_id"] for file in change.get("attachments", ())]
            for file_id in files[change["id"]]:
                assert (await self._server.get(f"/v1/files/{file_id}", "office")).body == self.content
        return files


@pytest.fixture
def guided(server: Running, tus_js: TusJs, tmp_path: Path) -> Guided:
    return Guided(server, tmp_path, tus_js.home)


@pytest.mark.parametrize("language", ["javascript", "python"])
async def test_guide_code_same_photo_sent_for_each_record(language: str, guided: Guided) -> None:
    await guided.push("j1", "j2")
    for record_id in ("j1", "j2", "j1"):
        await getattr(guided, language)(record_id)
    files = await guided.files()
    assert (len(files["j1"]), len(files["j2"])) == (1, 1)
    assert files["j1"] != files["j2"]


@pytest.mark.parametrize("language", ["javascript", "python"])
async def test_guide_code_resumes_its_records_upload_alone(language: str, guided: Guided) -> None:
    await guided.push("j1", "j2", "j10", "gone", "cancelled")
    half = guided.content[:300_000]
    remembered = {
        "j10": await guided.begun("j10", half),
        "j1": await guided.begun("j1", guided.content),
        "gone": "/v1/uploads/" + "0" * 32,
        "cancelled": await guided.begun("cancelled", half),
    }
    assert (await guided.phone.cancel(remembered["cancelled"])).status == 204
    guided.remember(remembered)
    for record_id in ("j2", "j1", "j10", "gone", "cancelled"):
        await getattr(guided, language)(record_id)
    files = await guided.files()
    for record_id in ("j1", "j10"):
        assert files[record_id] == [remembered[record_id].rpartition("/")[2]]
    for record_id in ("j2", "gone", "cancelled"):
        assert len(files[record_id]) == 1
