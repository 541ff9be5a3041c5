"""The master keys at the start of a server: made on the embedded default, checked everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

import structlog

from compose.sealing.master_key import is_set, made_master_key, make_master_key, master_keys
from engine.operate.key_admin import missing_keys, unreadable_values
from engine.operate.ports import RefusedError
from engine.operate.rows import CheckResult, SealedDomain, TenantKeyState
from engine.runtime.ports import StoreError
from engine.runtime.settings import Settings, SettingsError
from engine.seal.master_keys import MasterKeyError, missing_sentence, require_given
from storage.postgres.commands import command_database
from storage.stores.keys.admin import PostgresKeyAdmin

_RESTORE_KEYS: Final = "restore its rows of the table tenant_keys from a backup"
_log = structlog.get_logger()


async def start_sealing(settings: Settings, dsn: str, jobs_dsn: str) -> None:
    """Check the master keys, seal personal data in a database that is new, and say what stays plain.

    Where nothing is stored yet, domains that name ``pii`` fields are sealed from their first record on, if
    there is a master key. What is stored is sealed when an operator asks for it, since its size decides how
    long the job takes.

    Args:
        settings: The settings.
        dsn: The database, as the role of serving.
        jobs_dsn: The same, as the role of jobs: it sees the rows of all tenants.

    Raises:
        MasterKeyError: As ``check_master_keys``.
        StoreError: The database is away.
    """
    async with command_database(dsn, jobs_dsn) as database:
        store = PostgresKeyAdmin(database)
        sealed = await store.sealed_domains()
        await check_master_keys(settings, store, sealed)
        unsealed = unsealed_domains(settings, sealed)
        if unsealed and has_master_key(settings) and await store.nothing_is_stored():
            given = master_keys(settings).ids
            with suppress(RefusedError):  # a server of an older version runs, or one without this key
                for domain in unsealed:
                    await store.seal_domain(domain, given)
            unsealed = unsealed_domains(settings, await store.sealed_domains())
    if unsealed:
        _log.warning("personal_data_unsealed", domains=unsealed, remedy=seal_remedy(settings, unsealed))


def unsealed_domains(settings: Settings, sealed: Sequence[SealedDomain]) -> list[str]:
    """Return the domains that name ``pii`` fields and are not sealed."""
    known = {one.domain for one in sealed}
    return [name for name, domain in settings.domains.items() if domain.pii and name not in known]


def has_master_key(settings: Settings) -> bool:
    """Return whether there is a master key; on the embedded default `serve` makes it."""
    made = made_master_key(settings)
    return is_set(settings.sealing) or (made is not None and made.exists())


def seal_remedy(settings: Settings, unsealed: Sequence[str]) -> str:
    """Return what an operator does to have domains sealed."""
    commands = " and ".join(f"`run.py keys seal-domain {name}`" for name in unsealed)
    return (
        f"run {commands}" if has_master_key(settings) else f"set sealing.master_key_file, then run {commands}"
    )


async def check_master_keys(
    settings: Settings, store: PostgresKeyAdmin, sealed: Sequence[SealedDomain]
) -> None:
    """Make the master key of the embedded default, and see that no master key of the database is missing.

    Args:
        settings: The settings.
        store: The keys of the database. It sees those of all tenants.
        sealed: The domains that are sealed there.

    Raises:
        MasterKeyError: One is missing, or one that is set cannot be read. Sealed data could not be read.
        StoreError: The database is away.
    """
    in_use = await store.master_keys_in_use()
    made = made_master_key(settings)
    if made is not None and not in_use:  # one that is missing is not replaced by another
        try:
            make_master_key(made)
        except OSError as error:
            raise MasterKeyError(f"{made}: {error.strerror}") from None
    if in_use or sealed or made is not None or is_set(settings.sealing):
        require_given(in_use, master_keys(settings).ids)


def check_reloaded(settings: Settings) -> None:
    """See that the master keys of new settings can be read. Raises SettingsError."""
    if is_set(settings.sealing):
        try:
            master_keys(settings)
        except MasterKeyError as error:
            raise SettingsError(str(error), key="sealing") from None


def master_key_finding(settings: Settings) -> CheckResult:
    """Check the master keys of the settings, for doctor."""
    if not has_master_key(settings):
        return CheckResult("ok", "master key", "none is set: nothing can be sealed")
    try:
        given = master_keys(settings)
    except MasterKeyError as error:
        return CheckResult("fault", "master key", str(error), "put that right: sealed data need it")
    more = len(given.ids) - 1
    behind = f", and {more} more that only open" if more else ""
    return CheckResult("ok", "master key", f"{given.active} wraps the keys of tenants{behind}")


async def sealing_findings(settings: Settings, dsn: str, jobs_dsn: str) -> list[CheckResult]:
    """Check what is sealed in a database, for doctor. Other checks tell why it cannot be read."""
    try:
        async with command_database(dsn, jobs_dsn) as database:
            store = PostgresKeyAdmin(database)
            sealed, tenants = await store.sealed_domains(), await store.tenants()
            in_use = await store.master_keys_in_use()
            is_new = bool(unsealed_domains(settings, sealed)) and await store.nothing_is_stored()
    except StoreError:
        return []
    return [
        *_missing_finding(settings, in_use),
        _domains_finding(settings, sealed, is_new=is_new),
        *_tenant_findings(tenants),
    ]


def _missing_finding(settings: Settings, in_use: Sequence[str]) -> Iterator[CheckResult]:
    try:
        given = master_keys(settings).ids if has_master_key(settings) else []
    except MasterKeyError:
        return  # another check tells it
    if missing := set(in_use) - set(given):
        found = missing_sentence(missing, given)
        yield CheckResult("fault", "sealing", found, "set that key: serve refuses to start without it")


def _domains_finding(settings: Settings, sealed: Sequence[SealedDomain], *, is_new: bool) -> CheckResult:
    if unsealed := unsealed_domains(settings, sealed):
        names = ", ".join(unsealed)
        if is_new and (has_master_key(settings) or made_master_key(settings) is not None):
            found = f"nothing is stored yet: the next start of `serve` seals {names}"
            return CheckResult("ok", "sealing", found)
        if is_new:
            found = f"personal data of {names} would be stored in plain"
            remedy = "set sealing.master_key_file: the next start of `serve` seals them then"
            return CheckResult("warning", "sealing", found, remedy)
        found = f"personal data of {names} are stored in plain"
        return CheckResult("warning", "sealing", found, seal_remedy(settings, unsealed))
    named = ", ".join(one.domain for one in sealed)
    return CheckResult("ok", "sealing", f"sealed domains: {named}" if named else "no domain names pii fields")


def _tenant_findings(tenants: Sequence[TenantKeyState]) -> Iterator[CheckResult]:
    for one in tenants:
        if one.lost:
            yield CheckResult(
                "fault",
                "sealing",
                f"the keys of tenant {one.tenant} are lost: what is sealed of it cannot be read",
                _RESTORE_KEYS,
            )
        elif one.missing_keys:
            yield CheckResult("fault", "sealing", f"tenant {one.tenant}: {missing_keys(one)}", _RESTORE_KEYS)
        if one.unreadable_values:
            yield CheckResult(
                "fault",
                "sealing",
                f"tenant {one.tenant}: {unreadable_values(one)}",
                'restore these rows from a backup, or delete them (docs/operations.md, "Values that cannot be'
                f' opened"), then run `run.py keys verify --tenant {one.tenant}`, which ends this',
            )
