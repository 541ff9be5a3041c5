"""What looks at one deployment: for ``run.py doctor`` and ``run.py verify``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from msgspec.structs import replace

from compose.doctor.checklist import go_through
from compose.doctor.examine import examine
from compose.doctor.verify import verify
from compose.signing import signed_for_device
from engine.model.audit import AuditRow
from engine.operate.checklist import DeviceAddress, PointState
from engine.operate.rows import CheckResult
from engine.runtime.setting_layers import Layer
from engine.runtime.settings import Settings
from handlers.http.keys import signing_key
from handlers.http.tokens import KeySet
from storage.embedded.servers import Services

#: The device of handshakes that are made to their end.
_DEVICE: Final = "doctor"
_TOKEN_S: Final = 60


class Doctor:
    """``engine.operate.checklist.Doctor``.

    Args:
        settings: All settings.
        file: The settings file.
        keys: Reads the keys of tokens.
        note: Appends an event to the audit log.
        database: Opens the database. Raises DeploymentError if there is none.
    """

    def __init__(
        self,
        settings: Settings,
        file: Layer | None,
        keys: Callable[[], KeySet],
        note: Callable[[AuditRow], None],
        database: Callable[[], AbstractContextManager[Services]],
    ) -> None:
        self._settings = settings
        self._file = file
        self._keys = keys
        self._note = note
        self._database = database

    def examine(self) -> list[CheckResult]:
        """Check everything that a server needs."""
        return examine(self._settings, self._keys, self._file)

    def go_through_checklist(self, at: DeviceAddress | None, tenant: str | None) -> list[PointState]:
        """Go through the checklist for a deployment."""

        def sign() -> str:
            brief = replace(self._settings, auth=replace(self._settings.auth, token_ttl_s=_TOKEN_S))
            return signed_for_device(signing_key(self._keys()), brief, self._note, str(tenant), _DEVICE)

        return go_through(self._settings, self.examine(), at, None if tenant is None else sign)

    def verify(self) -> list[CheckResult]:
        """Check that the schema is as this version needs it."""
        with self._database() as at:
            return verify(self._settings, at)
