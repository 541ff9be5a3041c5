"""What an upload is refused for, and that nobody else pays for it."""

from __future__ import annotations

import base64
from typing import NamedTuple

import pytest

from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.raw_http import wired
from tests.harness.uploads.tus_uploader import (
    CHUNK,
    PNG,
    TUS,
    Uploader,
    described,
    encoded,
    file_path,
    photo,
    uploader,
)
from tests.security.catalogue import against

pytestmark = ON_SHARED

IMAGE_BYTES = 20 * 1024 * 1024
PDF = b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n"
ELF = b"\x7fELF\x02\x01\x01" + bytes(57)
MZ = b"MZ\x90\x00\x03\x00\x00\x00\x04\x00\x00\x00\xff\xff\x00\x00" + bytes(48)
HTML = b"<!DOCTYPE html><html><script>alert(1)</script></html>"


@pytest.fixture
def phone(shared: Running) -> Uploader:
    return uploader(shared)


def said(**values: str) -> dict[str, str | None]:
    """Metadata with something wrong."""
    return {"upload_metadata": encoded(described(**values))}


def without(key: str) -> dict[str, str | None]:
    """Metadata that lacks something."""
    return {"upload_metadata": encoded({name: value for name, value in described().items() if name != key})}


class Case(NamedTuple):
    """Headers of a creation that differ from a good one's, and the verdict."""

    headers: dict[str, str | None]
    verdict: tuple[int, str]


UNFIT = (422, "invalid_message")
LARGE = (413, "too_large")
WRONG_TYPE = (415, "unsupported_type")
MISMATCH = (460, "checksum_mismatch")
NAMED = encoded(described())

CREATIONS: dict[str, Case] = {
    "no length": Case({"upload_length": None}, UNFIT),
    "a length of words": Case({"upload_length": "ten"}, UNFIT),
    "a negative length": Case({"upload_length": "-1"}, UNFIT),
    "a length with a sign": Case({"upload_length": "+1"}, UNFIT),
    "a length in hex": Case({"upload_length": "0x10"}, UNFIT),
    "a fraction": Case({"upload_length": "1.5"}, UNFIT),
    "a length in other digits": Case({"upload_length": "\u0663"}, UNFIT),
    "two lengths": Case({"upload_length": "1, 2"}, UNFIT),
    "nothing at all": Case({"upload_length": "0"}, UNFIT),
    "one byte too many": Case({"upload_length": str(IMAGE_BYTES + 1)}, LARGE),
    "more than a bigint": Case({"upload_length": "9" * 30}, LARGE),
    "a length and none": Case({"upload_defer_length": "1"}, UNFIT),
    "a strange deferral": Case({"upload_length": None, "upload_defer_length": "2"}, UNFIT),
    "a strange concatenation": Case({"upload_concat": "some"}, UNFIT),
    "a final upload of nothing": Case({"upload_length": None, "upload_concat": "final;"}, UNFIT),
    "a final upload with a length": Case({"upload_concat": "final;/v1/uploads/" + "0" * 32}, UNFIT),
    "no metadata": Case({"upload_metadata": None}, UNFIT),
    "empty metadata": Case({"upload_metadata": ""}, UNFIT),
    "no base64": Case({"upload_metadata": NAMED + ",more a%b="}, UNFIT),
    "base64 without padding": Case({"upload_metadata": NAMED + ",more YQ"}, UNFIT),
    "no UTF-8": Case({"upload_metadata": NAMED + ",more " + base64.b64encode(b"\xff").decode()}, UNFIT),
    "a key twice": Case({"upload_metadata": NAMED + "," + encoded({"filename": "other.jpg"})}, UNFIT),
    "an empty key": Case({"upload_metadata": NAMED + ",,"}, UNFIT),
    "no name": Case(without("filename"), UNFIT),
    "an empty name": Case(said(filename=""), UNFIT),
    "a NUL in a name": Case(said(filename="a\0.jpg"), UNFIT),
    "CRLF in a name": Case(said(filename="a.jpg\r\nSet-Cookie: a=b"), UNFIT),
    "a name of 10,000 characters": Case(said(filename="a" * 5000 + "ä" * 5000), UNFIT),
    "a type that nobody takes": Case(said(filetype="application/x-msdownload"), WRONG_TYPE),
    "a type that is none": Case(said(filetype="image"), WRONG_TYPE),
    "no domain": Case(without("domain"), UNFIT),
    "a domain that is not there": Case(said(domain="nowhere"), UNFIT),
    "a domain of events": Case(said(domain="position"), UNFIT),
    "no record": Case(without("record_id"), UNFIT),
    "an empty record": Case(said(record_id=""), UNFIT),
    "a NUL in a record": Case(said(record_id="a\0"), UNFIT),
    "a long record": Case(said(record_id="a" * 10_000), UNFIT),
    "a short hash": Case(said(sha256="abc"), UNFIT),
    "a hash that is none": Case(said(sha256="g" * 64), UNFIT),
    "no version": Case({"tus_resumable": None}, (412, "unsupported_version")),
    "another version": Case({"tus_resumable": "0.2.2"}, (412, "unsupported_version")),
}


@pytest.mark.parametrize("case", CREATIONS)
async def test_creation_invalid_refused(case: str, phone: Uploader) -> None:
    reply = await phone.create(1000, **CREATIONS[case].headers)
    assert reply.verdict == CREATIONS[case].verdict
    assert "Location" not in reply.headers


@pytest.mark.parametrize("metadata", ["filename \udcff", "\udcff YQ==", "filename a%b=", "a YQ==,a YQ=="])
async def test_creation_of_a_part_checks_its_metadata(
    metadata: str, shared: Running, phone: Uploader
) -> None:
    headers = TUS | phone.authorization | {"Upload-Length": "1000", "Upload-Concat": "partial"}
    async with wired(shared.url) as wire:
        await wire.begin("POST", "/v1/uploads", headers | {"Upload-Metadata": metadata})
        assert (await wire.answer()).verdict == UNFIT


@pytest.mark.parametrize("version", [None, "0.2.2"])
@pytest.mark.parametrize("method", ["PATCH", "DELETE", "HEAD"])
async def test_tus_other_version_refused_naming_the_right_one(
    version: str | None, method: str, phone: Uploader
) -> None:
    path = await phone.begun(1000)
    headers = {"Upload-Offset": "0", "Content-Type": CHUNK}
    reply = await phone.ask(method, path, headers | ({"Tus-Resumable": version} if version else {}))
    assert (reply.status, reply.headers["Tus-Version"]) == (412, "1.0.0")
    assert await phone.offset(path) == 0


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "a\\b.jpg", "-rf", "site.jpg "])
@against("A01:2025", "V5.3")
async def test_creation_name_like_a_path_stays_a_name(name: str, phone: Uploader) -> None:
    content = photo(3_000, len(name))
    path = await phone.uploaded(content, filename=name)
    assert encoded({"filename": name}) in (await phone.head(path)).headers["Upload-Metadata"]
    assert await phone.file(path) == content


CHUNKS: dict[str, Case] = {
    "an offset too early": Case({"upload_offset": "499"}, (409, "offset_mismatch")),
    "an offset too late": Case({"upload_offset": "501"}, (409, "offset_mismatch")),
    "no offset": Case({"upload_offset": None}, UNFIT),
    "a negative offset": Case({"upload_offset": "-500"}, UNFIT),
    "an offset of words": Case({"upload_offset": "half"}, UNFIT),
    "a huge offset": Case({"upload_offset": "9" * 30}, LARGE),
    "another type": Case({"content_type": "application/octet-stream"}, WRONG_TYPE),
    "a form": Case({"content_type": "multipart/form-data; boundary=a"}, WRONG_TYPE),
    "no type": Case({"content_type": None}, WRONG_TYPE),
    "another length": Case({"upload_length": "999"}, (400, "inconsistent_length")),
    "an unknown algorithm": Case({"upload_checksum": "crc32 AAAAAA=="}, (400, "unsupported_checksum")),
    "a checksum of nothing": Case({"upload_checksum": "sha1"}, MISMATCH),
    "a checksum that is no base64": Case({"upload_checksum": "sha1 !"}, UNFIT),
    "a wrong checksum": Case({"upload_checksum": "sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0="}, MISMATCH),
}


@pytest.mark.parametrize("case", CHUNKS)
async def test_chunk_invalid_refused_keeps_the_offset(case: str, phone: Uploader) -> None:
    content = photo(1000, len(case))
    path = await phone.begun(1000, content[:500])
    reply = await phone.append(path, 500, content[500:], **CHUNKS[case].headers)
    assert reply.verdict == CHUNKS[case].verdict
    if reply.status == 409:
        assert (reply.headers["Upload-Offset"], reply.message["offset"]) == ("500", 500)
    assert await phone.offset(path) == 500
    assert (await phone.append(path, 500, content[500:])).status == 204
    assert await phone.file(path) == content


async def test_chunk_over_the_length_refused_before_a_byte(shared: Running, phone: Uploader) -> None:
    content = photo(1000)
    path = await phone.begun(1000, content[:500])
    assert (await phone.append(path, 500, bytes(501))).verdict == (413, "too_large")
    headers = TUS | phone.authorization | {"Upload-Offset": "500", "Content-Type": CHUNK}
    async with wired(shared.url) as wire:
        await wire.begin("PATCH", path, headers | {"Transfer-Encoding": "chunked"})
        await wire.send(b"1f5\r\n" + bytes(501) + b"\r\n0\r\n\r\n")
        assert (await wire.answer()).verdict == (413, "too_large")
    assert await phone.offset(path) == 500


@pytest.mark.parametrize("expect", [{}, {"Expect": "100-continue"}])
@pytest.mark.parametrize(
    ("metadata", "size_bytes", "verdict"),
    [
        (described(), IMAGE_BYTES + 1, LARGE),
        (described(filetype="application/pdf"), 10 * 1024 * 1024 + 1, LARGE),
        (described(filetype="audio/mpeg"), 25 * 1024 * 1024 + 1, LARGE),
        (described(filetype="video/mp4"), 1000, WRONG_TYPE),
        (described(domain="nowhere"), 1000, UNFIT),
    ],
)
async def test_refused_request_gets_no_100_continue(
    expect: dict[str, str],
    metadata: dict[str, str],
    size_bytes: int,
    verdict: tuple[int, str],
    shared: Running,
    phone: Uploader,
) -> None:
    length = str(size_bytes)
    headers = (
        TUS
        | phone.authorization
        | expect
        | {
            "Upload-Length": length,
            "Content-Length": length,
            "Content-Type": CHUNK,
            "Upload-Metadata": encoded(metadata),
        }
    )
    async with wired(shared.url) as wire:
        await wire.begin("POST", "/v1/uploads", headers)
        answer = await wire.answer()
    assert (answer.verdict, answer.interim) == (verdict, [])


async def test_accepted_request_gets_100_continue(shared: Running, phone: Uploader) -> None:
    content = photo(1000)
    path = await phone.begun(1000)
    headers = TUS | phone.authorization | {"Upload-Offset": "0", "Content-Type": CHUNK}
    async with wired(shared.url) as wire:
        await wire.begin("PATCH", path, headers | {"Content-Length": "1000", "Expect": "100-continue"})
        assert (await wire.interim()).status == 100
        await wire.send(content)
        assert (await wire.answer()).status == 204
    assert await phone.file(path) == content


@pytest.mark.parametrize("method", ["HEAD", "PATCH", "DELETE"])
@pytest.mark.parametrize("whose", ["nobody's", "another device's", "another tenant's", "no id"])
async def test_upload_other_device_not_found(
    method: str, whose: str, shared: Running, phone: Uploader
) -> None:
    path = await phone.begun(1000)
    asked = {"nobody's": "/v1/uploads/" + "0" * 32, "no id": "/v1/uploads/../uploads/x"}.get(whose, path)
    others = {
        "another device's": uploader(shared, "tablet"),
        "another tenant's": uploader(shared, tenant="globex"),
    }
    headers = TUS | {"Upload-Offset": "0", "Content-Type": CHUNK}
    body = photo(10) if method == "PATCH" else b""
    reply = await others.get(whose, phone).ask(method, asked, headers, body)
    assert reply.status == 404
    assert await phone.offset(path) == 0


@pytest.mark.parametrize(
    ("method", "of_one"), [("PUT", False), ("HEAD", False), ("GET", True), ("POST", True)]
)
async def test_other_method_refused_with_allow(method: str, of_one: bool, phone: Uploader) -> None:
    path = await phone.begun(1000) if of_one else "/v1/uploads"
    reply = await phone.ask(method, path, TUS)
    taken = "DELETE, HEAD, OPTIONS, PATCH" if of_one else "OPTIONS, POST"
    assert (reply.status, reply.headers["Allow"]) == (405, taken)
    assert method == "HEAD" or reply.verdict == (405, "method_not_allowed")
    assert method == "HEAD" or f"this path takes {taken}".encode() in reply.body


async def test_file_other_tenant_not_found(shared: Running, phone: Uploader) -> None:
    content = photo(1000)
    path = await phone.uploaded(content)
    assert await uploader(shared, "tablet").file(path) == content
    stranger = await uploader(shared, "phone", "globex").ask("GET", file_path(path), {})
    assert stranger.verdict == (404, "not_found")


@pytest.mark.parametrize("method", ["POST", "HEAD", "PATCH", "DELETE", "GET"])
async def test_request_without_a_token_refused(method: str, phone: Uploader) -> None:
    path = await phone.begun(1000)
    where = {"POST": "/v1/uploads", "GET": file_path(path)}.get(method, path)
    phone.authorization = {"Authorization": "Bearer nothing"}
    assert (await phone.ask(method, where, TUS)).status == 401


async def test_concatenation_other_devices_parts_refused(shared: Running, phone: Uploader) -> None:
    partial = {"upload_concat": "partial", "upload_metadata": None}
    content = photo(1000)
    for other in (uploader(shared, "tablet"), uploader(shared, "phone", "globex")):
        path = await other.begun(1000, content, **partial)
        reply = await phone.create(0, upload_length=None, upload_concat=f"final;{path}")
        assert reply.verdict == (404, "not_found")
        assert (await other.head(path)).status == 200


@pytest.mark.parametrize("how", ["unfinished", "whole", "twice"])
async def test_concatenation_incomplete_part_refused(how: str, phone: Uploader) -> None:
    partial = {"upload_concat": "partial", "upload_metadata": None}
    content = photo(1000)
    part = await phone.begun(1000, content, **partial)
    others = {
        "unfinished": await phone.begun(1000, content[:999], **partial),
        "whole": await phone.uploaded(content, filename="whole.jpg"),
        "twice": part,
    }
    joined = f"final;{part} {others[how]}"
    reply = await phone.create(0, upload_length=None, upload_concat=joined)
    assert reply.verdict == UNFIT
    assert await phone.offset(part) == 1000
    assert (await phone.create(0, upload_length=None, upload_concat=f"final;{part}")).status == 201


@pytest.mark.parametrize(
    ("filetype", "content"),
    [
        ("image/jpeg", ELF),
        ("image/png", MZ),
        ("image/png", HTML),
        ("image/jpeg", PDF),
        ("application/pdf", PNG),
        ("application/pdf", HTML),
        ("text/plain", HTML),
        ("text/plain", ELF),
        ("audio/mpeg", PNG),
        ("image/gif", b"just some words"),
    ],
)
async def test_finish_content_of_another_class_refused(
    filetype: str, content: bytes, phone: Uploader
) -> None:
    path = await phone.begun(len(content), **said(filetype=filetype))
    assert (await phone.append(path, 0, content)).verdict == WRONG_TYPE
    assert (await phone.head(path)).status == 410
    assert (await phone.ask("GET", file_path(path), {})).status == 404


async def test_finish_other_image_type_becomes_its_type(phone: Uploader) -> None:
    path = await phone.uploaded(PNG)
    reply = await phone.ask("GET", file_path(path), {})
    assert (reply.body, reply.headers["Content-Type"]) == (PNG, "image/png")
