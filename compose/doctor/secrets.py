"""Whether the files that hold secrets are closed to other accounts."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from compose.configuration import SECRETS
from compose.sealing.master_key import MADE_MASTER_KEY
from engine.operate.rows import CheckResult
from engine.runtime.setting_layers import Layer
from engine.runtime.settings import Settings

_OTHERS_READ: Final = stat.S_IROTH
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def secret_findings(settings: Settings, file: Layer | None) -> Iterator[CheckResult]:
    """Look at the modes of all files of secrets; those that cannot be read are found by who needs them.

    Args:
        settings: All settings.
        file: The settings file, which may hold secrets itself.

    Yields:
        One finding for each file that is open to others, or one for all.
    """
    closed = 0
    for path in _files(settings, file):
        try:
            mode = path.stat().st_mode
        except OSError:
            continue
        may = "read" if mode & _OTHERS_READ else "written" if mode & _OTHERS_WRITE else ""
        if may:
            found = f"{path} may be {may} by other accounts (mode {stat.S_IMODE(mode):04o})"
            yield CheckResult("warning", "secrets", found, f"chmod 0640 {path}, with the server's group")
        else:
            closed += 1
    yield CheckResult("ok", "secrets", f"{closed} files of secrets, closed to other accounts")


def _files(settings: Settings, file: Layer | None) -> Iterator[Path]:
    alerts = settings.alerts
    named = (
        settings.postgres.dsn_file,
        settings.postgres.owner_dsn_file,
        settings.postgres.jobs_dsn_file,
        settings.redis.url_file,
        settings.auth.secret_file,
        settings.sealing.master_key_file,
        alerts.webhook_url_file,
        alerts.webhook_secret_file,
        alerts.slack_webhook_url_file,
    )
    yield from map(Path, filter(None, named))
    if _is_private(settings.auth.key_file):
        yield Path(settings.auth.key_file)
    if file is not None and any(_is_set(file, key) for key in SECRETS):
        yield Path(file.source)
    yield Path(settings.data.dir) / "auth.secret"
    yield Path(settings.data.dir) / MADE_MASTER_KEY


def _is_set(file: Layer, key: str) -> bool:
    section, name = key.split(".")
    return bool(file.values.get(section, {}).get(name))


def _is_private(key_file: str) -> bool:
    try:
        return bool(key_file) and b"PRIVATE KEY" in Path(key_file).read_bytes()
    except OSError:
        return False
