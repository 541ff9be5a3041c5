"""tus-js-client uploads as it is: whole, cut, in parallel parts, checked, ended and resumed."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest

from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.services import execute
from tests.harness.tcp_proxy import Cut, breaking
from tests.harness.uploads.tus_js import TusJs, events
from tests.harness.uploads.tus_uploader import Uploader, described, encoded, photo, uploader
from tests.harness.ws_device import Json

pytestmark = ON_SHARED

CHUNK_BYTES = 64 * 1024


class Photo:
    """A file on disk, to be told to the client."""

    def __init__(self, server: Running, path: Path, size_bytes: int = 5 * CHUNK_BYTES + 17) -> None:
        self.content = photo(size_bytes, random.randrange(1 << 30))
        path.write_bytes(self.content)
        self._server = server
        self._path = path

    def told(self, options: Json | None = None, url: str | None = None, **more: Any) -> Json:
        """What to tell the client; ``options`` are its own, ``more`` goes beside them."""
        usual: Json = {
            "endpoint": f"{url or self._server.url}/v1/uploads",
            "headers": self._server.headers(),
            "metadata": described(),
            "chunkSize": CHUNK_BYTES,
        }
        return {"path": str(self._path), "options": usual | (options or {})} | more


@pytest.fixture
def a_photo(shared: Running, tmp_path: Path) -> Photo:
    return Photo(shared, tmp_path / "photo")


@pytest.fixture
def phone(shared: Running) -> Uploader:
    return uploader(shared)


def path_of(event: Json) -> str:
    """The path of the upload that an event is of."""
    return f"/v1/uploads/{event['url'].rpartition('/')[2]}"


WAYS: dict[str, Json] = {
    "in chunks": {},
    "at once": {"chunkSize": None},
    "begun with data": {"uploadDataDuringCreation": True},
    "begun with all of it": {"uploadDataDuringCreation": True, "chunkSize": None},
    "without PATCH": {"overridePatchMethod": True},
    "by the draft -03": {"protocol": "ietf-draft-03"},
    "by the draft -05": {"protocol": "ietf-draft-05"},
    "by the draft -05, begun with data": {"protocol": "ietf-draft-05", "uploadDataDuringCreation": True},
}


@pytest.mark.parametrize("way", WAYS)
async def test_tus_js_file_arrives(way: str, tus_js: TusJs, a_photo: Photo, phone: Uploader) -> None:
    options = {key: 1 << 30 if value is None else value for key, value in WAYS[way].items()}
    ended = await tus_js.ended(a_photo.told(options))
    assert ended["event"] == "success"
    assert await phone.file(path_of(ended)) == a_photo.content


async def test_tus_js_stream_of_unknown_length_arrives(
    tus_js: TusJs, a_photo: Photo, phone: Uploader
) -> None:
    ended = await tus_js.ended(a_photo.told({"uploadLengthDeferred": True}, stream=True))
    assert ended["event"] == "success"
    assert await phone.file(path_of(ended)) == a_photo.content


async def test_tus_js_four_parallel_parts_make_one_file(
    tus_js: TusJs, a_photo: Photo, phone: Uploader
) -> None:
    sha256 = hashlib.sha256(a_photo.content).hexdigest()
    options = {"parallelUploads": 4, "metadata": described(sha256=sha256)}
    happened = await tus_js.run(a_photo.told(options))
    assert happened[-1]["event"] == "success"
    assert await phone.file(path_of(happened[-1])) == a_photo.content
    assert len(events(happened, "answer", method="POST", status=201)) == 5


async def test_tus_js_cut_parts_make_one_file(
    tus_js: TusJs, shared: Running, a_photo: Photo, phone: Uploader
) -> None:
    cuts = [Cut(random.randrange(500, 100_000), random.choice(("fin", "rst", "dead"))) for _ in range(4)]
    async with breaking(shared.url, [None, None, None, None, *cuts]) as line:
        ended = await tus_js.ended(a_photo.told({"parallelUploads": 4}, line.url))
        assert ended["event"] == "success"
    assert await phone.file(path_of(ended)) == a_photo.content


@pytest.mark.parametrize("how", ["fin", "rst", "dead", "deaf"])
@pytest.mark.parametrize("chunk_bytes", [CHUNK_BYTES, 1 << 30])
async def test_tus_js_random_cuts_lose_no_byte(
    how: Any, chunk_bytes: int, tus_js: TusJs, shared: Running, a_photo: Photo, phone: Uploader
) -> None:
    cuts = [Cut(random.randrange(1, len(a_photo.content)), how) for _ in range(4)]
    async with breaking(shared.url, cuts) as line:
        ended = await tus_js.ended(a_photo.told({"chunkSize": chunk_bytes}, line.url))
        assert (ended["event"], line.made != []) == ("success", True)
    assert await phone.file(path_of(ended)) == a_photo.content


async def test_tus_js_lost_answer_makes_no_second_file(
    tus_js: TusJs, shared: Running, a_photo: Photo, phone: Uploader
) -> None:
    cut = Cut(len(a_photo.content), "deaf")
    async with breaking(shared.url, [cut]) as line:
        happened = await tus_js.run(a_photo.told({"chunkSize": 1 << 30}, line.url))
        assert line.made == [cut]
    assert happened[-1]["event"] == "success"
    assert len({event["url"] for event in events(happened, "url")}) == 1
    assert await phone.file(path_of(happened[-1])) == a_photo.content


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "md5"])
async def test_tus_js_wrong_checksum_repeats_its_chunk(
    algorithm: str, tus_js: TusJs, a_photo: Photo, phone: Uploader
) -> None:
    happened = await tus_js.run(a_photo.told(checksums=algorithm, spoil=2, retry_status=460))
    assert len(events(happened, "answer", method="PATCH", status=460)) == 2
    assert happened[-1]["event"] == "success"
    assert await phone.file(path_of(happened[-1])) == a_photo.content


async def test_tus_js_wrong_content_ends(tus_js: TusJs, a_photo: Photo, phone: Uploader) -> None:
    happened = await tus_js.run(a_photo.told({"metadata": described(sha256="0" * 64)}))
    assert (happened[-1]["event"], happened[-1]["status"]) == ("error", 460)
    path = path_of(events(happened, "url")[0])
    assert (await phone.head(path)).status == 410


async def test_tus_js_terminated_upload_gone(tus_js: TusJs, a_photo: Photo, phone: Uploader) -> None:
    ended = await tus_js.ended(a_photo.told(abort_after=2 * CHUNK_BYTES, terminate=True))
    assert ended["event"] == "aborted"
    assert (await phone.head(path_of(ended))).status == 410


async def test_tus_js_resumes_in_another_process(tus_js: TusJs, a_photo: Photo, phone: Uploader) -> None:
    stopped = await tus_js.ended(a_photo.told(abort_after=2 * CHUNK_BYTES))
    assert stopped["event"] == "aborted"
    assert await phone.offset(path_of(stopped)) >= 2 * CHUNK_BYTES
    happened = await tus_js.run(a_photo.told({"uploadUrl": stopped["url"]}))
    assert happened[-1]["event"] == "success"
    assert events(happened, "chunk")[0]["accepted"] == 3 * CHUNK_BYTES
    assert await phone.file(path_of(stopped)) == a_photo.content


async def test_tus_js_expired_upload_begins_again(
    tus_js: TusJs, shared: Running, a_photo: Photo, phone: Uploader
) -> None:
    stopped = await tus_js.ended(a_photo.told(abort_after=2 * CHUNK_BYTES))
    lapse(shared, path_of(stopped))
    assert (await phone.head(path_of(stopped))).status == 410
    ended = await tus_js.ended(a_photo.told({"uploadUrl": stopped["url"]}))
    assert ended["event"] == "success"
    assert ended["url"] != stopped["url"]
    assert await phone.file(path_of(ended)) == a_photo.content


def lapse(server: Running, upload_path: str) -> None:
    """Let an upload's time be over."""
    upload_id = upload_path.rpartition("/")[2]
    past = "expires_at = now() - interval '1 second'"
    execute(server.dsn, f"UPDATE upload_session SET {past} WHERE upload_id = '{upload_id}'")


@pytest.mark.parametrize(
    "name", ["Überstunden.jpg", "写真 3.jpg", "a🎉b.jpg", 'café, "quoted".jpg', "../../etc/passwd"]
)
async def test_tus_js_name_kept(name: str, tus_js: TusJs, a_photo: Photo, phone: Uploader) -> None:
    ended = await tus_js.ended(a_photo.told({"metadata": described(filename=name)}))
    assert ended["event"] == "success"
    reply = await phone.head(path_of(ended))
    assert encoded({"filename": name}) in reply.headers["Upload-Metadata"].split(",")


@pytest.mark.parametrize("filetype", ["text/plain", ""])
async def test_tus_js_empty_text_arrives(
    filetype: str, tus_js: TusJs, shared: Running, phone: Uploader, tmp_path: Path
) -> None:
    empty = Photo(shared, tmp_path / "empty", 0)
    ended = await tus_js.ended(empty.told({"metadata": described(filetype=filetype)}))
    assert ended["event"] == "success"
    assert await phone.file(path_of(ended)) == b""


@pytest.mark.parametrize(("size_bytes", "status"), [(0, 422), (20 * 1024 * 1024 + 1, 413)])
async def test_tus_js_refusal_not_retried(
    size_bytes: int, status: int, tus_js: TusJs, shared: Running, tmp_path: Path
) -> None:
    unfit = Photo(shared, tmp_path / "unfit", size_bytes)
    happened = await tus_js.run(unfit.told())
    assert [event["event"] for event in happened] == ["answer", "error"]
    assert happened[-1]["status"] == status
