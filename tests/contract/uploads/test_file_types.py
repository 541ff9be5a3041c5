"""Files whose type only their content tells, texts in any encoding, and files of no bytes."""

from __future__ import annotations

from typing import Final

import pytest

from tests.engine.filetypes.test_types import WRITTEN
from tests.harness.in_process_server import ON_SHARED, Running, Serve
from tests.harness.raw_http import wired
from tests.harness.uploads.file_heads import DOCX, HEADS
from tests.harness.uploads.tus_uploader import PNG, Uploader, described, encoded, file_path, photo, uploader
from tests.harness.ws_device import Json, item

pytestmark = ON_SHARED

OCTETS: Final = "application/octet-stream"


@pytest.fixture
def phone(shared: Running) -> Uploader:
    return uploader(shared)


def metadata(filetype: str | None, **values: str) -> str:
    """What an upload says of itself that may leave its type out."""
    said = described(**values)
    del said["filetype"]
    return encoded(said if filetype is None else said | {"filetype": filetype})


async def attached(server: Running) -> Json:
    """Push the record of the files; gives the one file that the feed then tells of."""
    await (await server.device()).push(item("put", "task", "pump-3", data={}))
    office = await server.device("office")
    while True:
        (change,) = (await office.told("changes", "pull"))["changes"]
        if "attachments" in change:
            (file,) = change["attachments"]
            return dict(file)


@pytest.mark.parametrize("filetype", ["", OCTETS, None])
@pytest.mark.parametrize(
    ("head", "found"), [("heic", "image/heic"), ("docx", DOCX), ("csv", "text/plain"), ("mp3", "audio/mpeg")]
)
async def test_undeclared_upload_gets_type_of_its_content(
    filetype: str | None, head: str, found: str, shared: Running, phone: Uploader
) -> None:
    content = HEADS[head]
    path = await phone.begun(len(content), upload_metadata=metadata(filetype, filename=f"a.{head}"))
    assert (await phone.append(path, 0, content)).status == 204
    reply = await phone.ask("GET", file_path(path), {})
    assert (reply.body, reply.headers["Content-Type"]) == (content, found)
    assert (await attached(shared))["filetype"] == found


async def test_undeclared_upload_unclear_class_refused(phone: Uploader) -> None:
    content = HEADS["isom"]
    path = await phone.begun(len(content), upload_metadata=metadata(OCTETS))
    refused = await phone.append(path, 0, content)
    assert refused.verdict == (415, "unsupported_type")
    assert "declare in filetype which it is" in refused.message["message"]
    assert (await phone.head(path)).status == 410


async def test_undeclared_ietf_upload_gets_type_of_its_content(shared: Running, phone: Uploader) -> None:
    for number, said in enumerate(({}, {"Content-Type": OCTETS})):
        named = {"Upload-Metadata": metadata(None, filename=f"{number}.png")}
        draft = {"Upload-Complete": "?1", "Upload-Draft-Interop-Version": "8"}
        async with wired(shared.url) as wire:
            answer = await wire.ask("POST", "/v1/uploads", phone.authorization | draft | said | named, PNG)
        assert answer.status == 201
        interim = answer.interim[0].headers
        assert "max-size=26214400" in interim["Upload-Limit"], "that of the class that takes most"
        assert "max-size=20971520" in answer.headers["Upload-Limit"]
        path = file_path(interim["Location"])
        assert (await phone.ask("GET", path, {})).headers["Content-Type"] == "image/png"


@pytest.mark.parametrize("encoding", ["Excel's Unicode text", "Shift-JIS", "Ctrl-Z"])
async def test_text_upload_other_encoding_kept(encoding: str, phone: Uploader) -> None:
    content = WRITTEN[encoding]
    path = await phone.uploaded(content, filename="gates.txt", filetype="text/plain")
    assert await phone.file(path) == content


@pytest.mark.parametrize("filetype", ["text/plain", "text/csv", OCTETS, "", None])
async def test_empty_file_complete_by_creation(
    filetype: str | None, shared: Running, phone: Uploader
) -> None:
    created = await phone.create(0, upload_metadata=metadata(filetype))
    assert (created.status, created.headers["Upload-Offset"]) == (201, "0")
    path = created.headers["Location"]
    assert await phone.file(path) == b"", "tus-js-client and tuspy send nothing more"
    assert (await phone.append(path, 0, b"")).status == 204, "tus-java-client sends an empty request"
    head = await phone.head(path)
    assert (head.headers["Upload-Offset"], head.headers["Upload-Length"]) == ("0", "0")
    file = await attached(shared)
    found = "text/csv" if filetype == "text/csv" else "text/plain"
    assert (file["size_bytes"], file["filetype"]) == (0, found)


async def test_empty_file_by_ietf_draft_complete_by_creation(shared: Running, phone: Uploader) -> None:
    for complete in ("?1", "?0"):
        headers = phone.authorization | {
            "Upload-Complete": complete,
            "Upload-Length": "0",
            "Content-Type": "text/plain",
            "Upload-Metadata": metadata(None, filename=f"{complete}.txt"),
        }
        async with wired(shared.url) as wire:
            answer = await wire.ask("POST", "/v1/uploads", headers)
        assert (answer.status, answer.headers["Upload-Complete"]) == (201, "?1")
        path = answer.headers["Location"]
        assert await phone.file(path) == b""


@pytest.mark.parametrize("filetype", ["image/jpeg", "application/pdf", "audio/mpeg"])
async def test_empty_file_not_text_refused(filetype: str, phone: Uploader) -> None:
    refused = await phone.create(0, upload_metadata=metadata(filetype))
    assert refused.verdict == (422, "invalid_message")
    assert "the file is empty" in refused.message["message"]
    path = await phone.begun(None, upload_metadata=metadata(filetype))
    late = await phone.append(path, 0, b"", upload_length="0")
    assert late.verdict == (415, "unsupported_type")
    assert "the file is empty" in late.message["message"]
    part = await phone.begun(0, upload_concat="partial", upload_metadata=None)
    joined = {"upload_length": None, "upload_concat": f"final;{part}"}
    refused = await phone.create(0, upload_metadata=metadata(filetype), **joined)
    assert refused.verdict == (422, "invalid_message")
    final = await phone.create(0, upload_metadata=metadata("text/plain"), **joined)
    assert await phone.file(final.headers["Location"]) == b"", "the part was not spent by the refusal"


@pytest.mark.asyncio(loop_scope="function")
async def test_deferred_length_reserves_limit_of_its_class(serve: Serve) -> None:
    server = await serve(uploads={"tenant_bytes": 20 * 1024 * 1024 + 1})
    phone = uploader(server)
    assert (await phone.create(None, upload_metadata=metadata(None))).verdict == (413, "quota_exceeded")
    path = await phone.begun(None)
    assert (await phone.create(2)).verdict == (413, "quota_exceeded"), "an image may have 20 MiB"
    assert (await phone.append(path, 0, photo(1000), upload_length="1000")).status == 204
    assert (await phone.create(20_000_000)).status == 201


@pytest.mark.asyncio(loop_scope="function")
async def test_undeclared_upload_past_the_limit_of_its_class_refused(serve: Serve) -> None:
    server = await serve(uploads={"image_bytes": 1000, "document_bytes": 2000, "voice_bytes": 2000})
    phone = uploader(server)
    assert (await phone.create(2001, upload_metadata=metadata(None))).verdict == (413, "too_large")
    path = await phone.begun(1001, upload_metadata=metadata(None))
    refused = await phone.append(path, 0, photo(1001))
    assert refused.verdict == (413, "too_large")
    assert refused.message["message"] == "1001 bytes: an image has 1000 at most"
    assert (await phone.head(path)).status == 410
    other = await phone.begun(1000, upload_metadata=metadata(None))
    assert (await phone.append(other, 0, photo(1000))).status == 204
