"""SIGHUP: reads the settings again. Keys that need a restart keep their values and are logged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

import structlog
from msgspec.structs import replace

from compose.alerts import receivers
from compose.configuration import bus_url, database_services
from compose.metrics import release
from engine.runtime.ports import StoreError
from engine.runtime.setting_layers import InForce
from engine.runtime.settings import Settings, SettingsError
from handlers.commands.deployment import DeploymentError
from handlers.http.tokens import UnusableKeyError
from storage.embedded.servers import Services
from storage.postgres.display_names import dsn_without_secrets, url_without_secrets
from storage.stores.audit import append_now, by_account

#: Keys that a new worker shares with the one it replaces, or with the supervisor.
_TAKES_RESTART: Final = (
    ("server", "host"),
    ("server", "port"),
    ("server", "workers"),
    ("server", "probe_port"),
    ("data", "dir"),
    ("postgres", "schema"),
    ("log", "format"),
)

#: The keys of the fields of ``Services``.
_SERVICES: Final = {
    "dsn": "postgres.dsn",
    "redis_url": "redis.url",
    "owner_dsn": "postgres.owner_dsn",
    "jobs_dsn": "postgres.jobs_dsn",
}

_log = structlog.get_logger()


class Reading(NamedTuple):
    """Settings as they were read; ``values`` has every key with its value."""

    settings: Settings
    values: Sequence[InForce]


class Reload:
    """Reads the settings again for new workers.

    Args:
        reading: The settings of the start.
        at: Where PostgreSQL and Redis are.
        read: Reads all settings and checks the keys of tokens. May raise SettingsError,
            DeploymentError or UnusableKeyError.
        note: Is told the database and the keys that changed.
    """

    def __init__(
        self,
        reading: Reading,
        at: Services,
        read: Callable[[], Reading],
        note: Callable[[str, list[str]], None] = lambda _, __: None,
    ) -> None:
        self._settings = reading.settings
        self._values = {one.key: one.value for one in reading.values}
        self._files = _files(reading)
        self._given = _given(reading.settings)
        self._at = at
        self._read = read
        self._note = note

    def __call__(self) -> tuple[Settings, Services] | None:
        """Return the settings and services of new workers; None if they are broken, which is logged."""
        try:
            reading = self._read()
            given = _given(self._same_cell(reading.settings))
            receivers(reading.settings)
        except SettingsError as error:
            _log.error("settings_not_reloaded", reason=str(error), file=error.file, key=error.key)
            return None
        except (DeploymentError, UnusableKeyError) as error:
            _log.error("settings_not_reloaded", reason=str(error), file="", key="auth")
            return None
        chosen, stays = self._with_what_stays(reading.settings, given)
        values = {one.key: one.value for one in reading.values}
        changed = {key for key in values.keys() | self._values if values.get(key) != self._values.get(key)}
        files = _files(reading)
        changed |= {key for key, content in files.items() if self._files.get(key, content) != content}
        effective = sorted(changed.difference(stays, (f"{key}_file" for key in stays)))
        _log.info("settings_reloaded", changed=effective)
        if stays:
            _log.warning("settings_take_restart", keys=stays)
        self._settings, self._values, self._files = chosen, values, files
        before, at = self._given, self._at
        self._given = Services(
            *(getattr(before if key in stays else given, name) for name, key in _SERVICES.items())
        )
        self._at = Services(*(getattr(self._given, name) or getattr(at, name) for name in _SERVICES))
        self._note(self._at.dsn, effective)
        return chosen, self._at

    def _same_cell(self, chosen: Settings) -> Settings:
        """Return the settings with the schema of before, which stays, so that no DSN looks changed by it."""
        return replace(chosen, postgres=replace(chosen.postgres, schema=self._settings.postgres.schema))

    def _with_what_stays(self, chosen: Settings, given: Services) -> tuple[Settings, list[str]]:
        """Restore the keys that need a restart; return the settings and these keys."""
        old, stays = self._settings, []
        for section, key in _TAKES_RESTART:
            new, kept = getattr(chosen, section), getattr(getattr(old, section), key)
            if getattr(new, key) != kept:
                stays.append(f"{section}.{key}")
                chosen = replace(chosen, **{section: replace(new, **{key: kept})})
        # A password may change. With another database or bus, workers would work on different data.
        for name in ("dsn", "owner_dsn", "jobs_dsn"):
            new_dsn, old_dsn = getattr(given, name), getattr(self._given, name)
            if dsn_without_secrets(new_dsn) != dsn_without_secrets(old_dsn):
                stays.append(_SERVICES[name])
                kept = {key: getattr(old.postgres, key) for key in (name, f"{name}_file")}
                chosen = replace(chosen, postgres=replace(chosen.postgres, **kept))
        if url_without_secrets(given.redis_url) != url_without_secrets(self._given.redis_url):
            stays.append("redis.url")
            new_redis = replace(chosen.redis, url=old.redis.url, url_file=old.redis.url_file)
            chosen = replace(chosen, redis=new_redis)
        return chosen, stays


def note_start(dsn: str, values: Sequence[InForce]) -> None:
    """Write the start of a server to the audit log, with its settings; secrets must be hidden in them.

    Raises StoreError.
    """
    _, version = release()
    details = {one.key: one.value for one in values if one.source != "default"}
    append_now(dsn, by_account("server_started", version, details=details))


def note_reload(dsn: str, changed: list[str]) -> None:
    """Write new settings to the audit log. If the database is away, the server goes on."""
    _, version = release()
    try:
        append_now(dsn, by_account("settings_reloaded", version, details={"changed": changed}))
    except StoreError as error:
        _log.warning("audit_not_stored", reason=type(error).__name__)


def _files(reading: Reading) -> dict[str, bytes]:
    """Return a hash of each file that a setting names, by the key of the setting."""
    found = {}
    for one in reading.values:
        if one.key.endswith("_file") and one.value:
            with suppress(OSError):  # the error is reported where the file is used
                found[one.key] = sha256(Path(str(one.value)).read_bytes()).digest()
    return found


def _given(chosen: Settings) -> Services:
    """Return the services that the settings name. Raises SettingsError."""
    return replace(database_services(chosen), redis_url=bus_url(chosen))
