"""Reads settings: the defaults, one settings file, and the files of secrets that they name."""

from __future__ import annotations

import errno
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from engine.runtime.setting_layers import COMMAND_LINE, DEFAULT, Layer, environment
from engine.runtime.settings import Settings, SettingsError
from storage.embedded.servers import Services
from storage.postgres.cell.dsn import schema_of, with_schema
from storage.postgres.display_names import HIDDEN, dsn_without_secrets, url_without_secrets

DEFAULTS: Final = Path(__file__).parent.parent / "config.toml"
#: The settings of a machine, for every command on it.
SYSTEM_FILE: Final = Path("/etc/tidemark/config.toml")
VARIABLE: Final = "TIDEMARK_CONFIG"
#: Settings whose values are secrets, or may hold one, with the function that returns the part to show.
SECRETS: Final[Mapping[str, Callable[[str], str]]] = {
    "auth.secret": lambda _: HIDDEN,
    "sealing.master_key": lambda _: HIDDEN,
    "s3.secret_access_key": lambda _: HIDDEN,
    "alerts.webhook_url": lambda _: HIDDEN,
    "alerts.webhook_secret": lambda _: HIDDEN,
    "alerts.slack_webhook_url": lambda _: HIDDEN,
    "postgres.dsn": dsn_without_secrets,
    "postgres.owner_dsn": dsn_without_secrets,
    "postgres.jobs_dsn": dsn_without_secrets,
    "redis.url": url_without_secrets,
}

_LET_IN: Final = (
    "let this account read it (root:tidemark, mode 0640), or run this as another one (sudo -u tidemark)"
)


def layers(
    config: Path | None, flags: Mapping[str, Mapping[str, Any]], *, of_system: bool = True
) -> list[Layer]:
    """Read the defaults, the settings file, the environment and the command line; a later layer wins.

    Args:
        config: The file of ``--config``.
        flags: Settings from the command line, by section.
        of_system: Whether the file of this machine is used if none is given.

    Raises:
        SettingsError: A file cannot be read or is no TOML, or a variable names no setting.
    """
    found = [Layer(DEFAULT, _values(DEFAULTS, DEFAULTS.name))]
    own = _own_layer(config, of_system=of_system)
    if own is not None:
        found.append(own)
    return [*found, environment(os.environ), Layer(COMMAND_LINE, flags)]


def _own_layer(config: Path | None, *, of_system: bool) -> Layer | None:
    """Read the first settings file that is given or exists; None if there is none."""
    named = os.environ.get(VARIABLE)
    if config is not None:
        return _layer(config, str(config))
    if named:
        return _layer(Path(named), f"{named} (of {VARIABLE})")
    if of_system:
        try:
            SYSTEM_FILE.stat()  # not exists(): a file that this account may not see is not missing
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            pass  # the read below gives a better sentence
        return _layer(SYSTEM_FILE, str(SYSTEM_FILE))
    return None


def _layer(path: Path, shown: str) -> Layer | None:
    """Read a settings file; None for the defaults themselves. Raises SettingsError."""
    try:
        if path.samefile(DEFAULTS):
            return None
        return Layer(str(path), _values(path, shown))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SettingsError(
            f"{shown}: {error.strerror}: name a file of settings that exists", file=str(path)
        ) from None
    except OSError as error:
        raise SettingsError(f"{shown}: {error.strerror}: {_remedy(error)}", file=str(path)) from None


def _values(path: Path, shown: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{shown}: {error}: correct it, it has to be TOML in UTF-8", file=str(path)
        ) from None


def _remedy(error: OSError) -> str:
    return _LET_IN if error.errno in {errno.EACCES, errno.EPERM} else "put that right, or name another file"


def database_dsn(chosen: Settings) -> str:
    """Return the database's DSN, empty for the embedded one. Raises SettingsError."""
    postgres = chosen.postgres
    return postgres.dsn or _secret("postgres.dsn_file", postgres.dsn_file)


def database_services(chosen: Settings) -> Services:
    """Return the DSNs of the database's roles, empty for the embedded one. Raises SettingsError."""
    postgres = chosen.postgres
    found = Services(
        database_dsn(chosen),
        "",
        postgres.owner_dsn or _secret("postgres.owner_dsn_file", postgres.owner_dsn_file),
        postgres.jobs_dsn or _secret("postgres.jobs_dsn_file", postgres.jobs_dsn_file),
    )
    return in_cell(found, chosen)


def in_cell(at: Services, chosen: Settings) -> Services:
    """Return services whose DSNs carry the schema of the settings. Raises SettingsError for another."""
    schema = chosen.postgres.schema
    if any(schema_of(one) not in ("", schema) for one in (at.dsn, at.owner, at.jobs)):
        raise SettingsError(
            "postgres.dsn: it carries another schema than postgres.schema: take tidemark.schema out of it",
            key="postgres.dsn",
        )
    dsn, owner_dsn, jobs_dsn = (with_schema(one, schema) for one in (at.dsn, at.owner_dsn, at.jobs_dsn))
    return Services(dsn, at.redis_url, owner_dsn, jobs_dsn)


def bus_url(chosen: Settings) -> str:
    """Return the URL of Redis, empty for the embedded one. Raises SettingsError."""
    return chosen.redis.url or _secret("redis.url_file", chosen.redis.url_file)


class AlertSecrets(NamedTuple):
    """What [alerts] holds that nobody else may read; empty texts are not set."""

    webhook_url: str
    webhook_secret: str
    slack_webhook_url: str


def alert_secrets(chosen: Settings) -> AlertSecrets:
    """Return the URLs of receivers and the key of signatures. Raises SettingsError."""
    alerts = chosen.alerts
    return AlertSecrets(
        alerts.webhook_url or _secret("alerts.webhook_url_file", alerts.webhook_url_file),
        alerts.webhook_secret or _secret("alerts.webhook_secret_file", alerts.webhook_secret_file),
        alerts.slack_webhook_url or _secret("alerts.slack_webhook_url_file", alerts.slack_webhook_url_file),
    )


def _secret(key: str, file: str) -> str:
    """Read the file that a key names; without one the secret is empty.

    Raises:
        SettingsError: The file cannot be read, or does not hold one line.
    """
    if not file:
        return ""

    def refused(why: str) -> SettingsError:
        return SettingsError(f"{key}: {file}: {why}", file=file, key=key)

    try:
        text = Path(file).read_bytes().decode().strip()
    except OSError as error:
        remedy = (
            f"write it there, or correct {key}"
            if error.errno in {errno.ENOENT, errno.ENOTDIR}
            else _remedy(error)
        )
        raise refused(f"{error.strerror}: {remedy}") from None
    except UnicodeDecodeError:
        raise refused("not a text in UTF-8: write it anew") from None
    if not text or "\0" in text or "\n" in text:
        raise refused("one line that is not empty is wanted: write it there")
    return text
