"""How files begin: the first bytes of what real encoders wrote, by a short name of each."""

from __future__ import annotations

import io
import zipfile
from typing import Final

DOCX: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
XLSX: Final = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
OLE: Final = bytes.fromhex("d0cf11e0a1b11ae1")


def archive(*entries: tuple[str, bytes]) -> bytes:
    """Make a ZIP whose files lie in it as they are."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as zipped:
        for name, content in entries:
            zipped.writestr(name, content)
    return whole.getvalue()


_CONTENT_TYPES: Final = ("[Content_Types].xml", b"<Types/>")
_RELATIONS: Final = ("_rels/.rels", b"<Relationships/>")

HEADS: Final = {
    "jpeg": bytes.fromhex(
        "ffd8ffe000104a46494600010100000100010000ffdb004300080606070605080707070909080a0c140d0c0b0b0c1912"
    ),
    "png": bytes.fromhex("89504e470d0a1a0a0000000d4948445200000040000000400802000000250be689"),
    "webp": bytes.fromhex("524946462e0900005745425056503820220900001022009d012a400040000140"),
    "gif": bytes.fromhex("47494638376140004000870000fffffffefefefdfdfdfcfcfcfbfbfbf9f9f9f8"),
    "heic": bytes.fromhex(
        "0000001c6674797068656963000000006d696631686569636d696166000001566d657461000000000000002168646c72"
    ),
    "heif": bytes.fromhex("00000018667479706d696631000000006d6966316d696166000001566d657461"),
    "pdf": bytes.fromhex("255044462d312e330a25938c8b9e205265706f72744c61622047656e65726174"),
    "text": "Das Tor ist zu; der Schlüssel liegt beim Pförtner.\r\n".encode(),
    "latin": "Tor;Schlüssel\r\nNord;Pförtner €\r\n".encode("cp1252"),
    "csv": b"gate;key\n1;porter\n",
    "doc": OLE + bytes(504) + bytes.fromhex("eca5c100"),
    "xls": OLE + bytes(504) + bytes.fromhex("0908100000060500"),
    "docx": archive(_CONTENT_TYPES, _RELATIONS, ("word/document.xml", b"<w:document/>")),
    "xlsx": archive(("docProps/app.xml", b"<Properties/>"), ("xl/workbook.xml", b"<workbook/>")),
    "mp3": bytes.fromhex(
        "ffe318c4000d089294794f000006492802f7bdef7bdef4a5294a5294bdeefdfdf7ef12a9f2de2de26e2e65cd561b1002"
        "018ac1f7e5031479fe53dfd1fe0439cff42a2688b0cb133fffe318c4060e70f2"
    ),
    "id3": bytes.fromhex(
        "49443304000000000022545353450000000e0000034c61766636332e312e3130320000000000000000000000fffb40c0"
        "0000000000000000000000000000000000496e666f000000"
    ),
    "m4a": bytes.fromhex(
        "0000001c667479704d344120000002004d34412069736f6d69736f320000000866726565000044e26d646174dc004c61"
    ),
    "mp42": bytes.fromhex(
        "0000001c667479706d703432000002006d70343269736f326d7034310000000866726565000044e26d646174dc004c61"
    ),
    "isom": bytes.fromhex(
        "0000001c6674797069736f6d0000020069736f6d69736f326d7034310000000866726565000044e26d646174dc004c61"
    ),
    "3gp": bytes.fromhex(
        "0000001c6674797033677034000002003367703469736f6d69736f320000000866726565000044e26d646174dc004c61"
    ),
    "aac": bytes.fromhex("fff1504020fffcdc004c6176") + bytes(251) + bytes.fromhex("fff15040213ffc0134"),
    "vorbis": bytes.fromhex(
        "4f676753000200000000000000007ca9614b000000004f73efe8011e01766f72626973000000000144ac000000000000"
    ),
    "opus": bytes.fromhex(
        "4f676753000200000000000000003839ec4a0000000059aa3ad401134f707573486561640101380180bb0000000000"
    ),
    "theora": bytes.fromhex(
        "4f67675300020000000000000000d1e9f56300000000b37d6e47012a807468656f726103020100140000f0001000f0"
    ),
    "wav": bytes.fromhex(
        "5249464656b1020057415645666d7420100000000100010044ac000088580100020010004c4953541a000000494e464f"
    ),
    "webm": bytes.fromhex(
        "1a45dfa39f4286810142f7810142f2810442f381084282847765626d42878104428581021853806701000000"
    ),
    "flac": bytes.fromhex(
        "664c6143000000220400040000006e0001870ac440f000015888555a3a071ab266166072d4ae6de448410400002c0c00"
    ),
    "amr": bytes.fromhex("2321414d520a3c2403b7501063c7e8cc01eaf6466714c0004d2c126d7b340000"),
    "amr-wb": b"#!AMR-WB\n" + bytes.fromhex("3c2403b7501063c7e8cc"),
}
