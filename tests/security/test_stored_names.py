"""Names in the directory and in the bucket of files: only those that this server makes are its own."""

from __future__ import annotations

from typing import Final

import pytest

from engine.wire.errors import SyncError
from handlers.uploads.common import upload_id
from storage.blobs import directory, s3
from tests.security.catalogue import against
from tests.security.texts import CONTROLS, TEXTS

ID: Final = "0123456789abcdef" * 2
HOSTILE: Final = {
    **TEXTS,
    **CONTROLS,
    "an id in capitals": ID.upper(),
    "a longer id": ID + "0",
    "a shorter id": ID[1:],
    "an id with a line": ID + "\n",
    "an id with a NUL": ID + "\0",
    "an id of wide digits": "\uff10" * 32,
    "an id and a point": ID + ".",
    "a wildcard": "*" * 32,
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
@against("A01:2025", "V5.3")
def test_name_of_a_stored_file_is_an_id_alone(name: str) -> None:
    """A name that is none is no upload's, no file's of the directory, and no object's of the bucket."""
    assert directory._NAME.fullmatch(name) is None
    for tenant, stored in (("1", name), (name, ID), ("../1", ID), ("1/..", ID)):
        assert s3._NAME.fullmatch(f"files/{tenant}/{stored}") is None
    with pytest.raises(SyncError) as refused:
        upload_id(name)
    assert refused.value.code == "not_found"


@against("A01:2025", "V5.3")
def test_name_of_a_stored_file_that_this_server_makes_is_known() -> None:
    assert directory._NAME.fullmatch(ID)
    assert s3._NAME.fullmatch(f"files/1/{ID}")
    assert upload_id(f"/v1/uploads/{ID}") == ID
