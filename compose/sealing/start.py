"""The master keys at the start of a server: made on the embedded default, checked everywhere."""

from __future__ import annotations

from compose.sealing.master_key import is_set, made_master_key, make_master_key, master_keys
from engine.operate.rows import CheckResult
from engine.runtime.settings import Settings, SettingsError
from engine.seal.master_keys import MasterKeyError, missing_sentence
from storage.postgres.commands import command_database
from storage.stores.keys.admin import PostgresKeyAdmin


async def check_master_keys(settings: Settings, dsn: str, jobs_dsn: str) -> None:
    """Make the master key of the embedded default, and see that no master key of the database is missing.

    Args:
        settings: The settings.
        dsn: The database, as the role of serving.
        jobs_dsn: The same, as the role of jobs: it sees the keys of all tenants.

    Raises:
        MasterKeyError: One is missing, or one that is set cannot be read. Sealed data could not be read.
        StoreError: The database is away.
    """
    async with command_database(dsn, jobs_dsn) as database:
        store = PostgresKeyAdmin(database)
        in_use = await store.master_keys_in_use()
        sealed = await store.sealed_domains()
    made = made_master_key(settings)
    if made is not None and not in_use:  # one that is missing is not replaced by another
        try:
            make_master_key(made)
        except OSError as error:
            raise MasterKeyError(f"{made}: {error.strerror}") from None
    if in_use or sealed or made is not None or is_set(settings.sealing):
        given = master_keys(settings)
        if missing := set(in_use) - set(given.ids):
            raise MasterKeyError(missing_sentence(missing, given.ids))


def check_reloaded(settings: Settings) -> None:
    """See that the master keys of new settings can be read. Raises SettingsError."""
    if is_set(settings.sealing):
        try:
            master_keys(settings)
        except MasterKeyError as error:
            raise SettingsError(str(error), key="sealing") from None


def master_key_finding(settings: Settings) -> CheckResult:
    """Check the master keys of the settings, for doctor."""
    made = made_master_key(settings)
    if not is_set(settings.sealing) and (made is None or not made.exists()):
        return CheckResult("ok", "master key", "none is set: nothing can be sealed")
    try:
        given = master_keys(settings)
    except MasterKeyError as error:
        return CheckResult("fault", "master key", str(error), "put that right: sealed data need it")
    more = len(given.ids) - 1
    behind = f", and {more} more that only open" if more else ""
    return CheckResult("ok", "master key", f"{given.active} wraps the keys of tenants{behind}")
