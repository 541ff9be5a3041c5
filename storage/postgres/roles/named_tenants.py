"""The tenants that a transaction names: row-level security shows it their rows, and no others.

The policy of each growing table (storage/postgres/roles/policies.py) compares a row's tenant with the
setting ``tidemark.tenants``. It is set for one transaction, in its first round trip, so that no setting of a
connection, of a role or of a pooler matters. A transaction that names nobody sets it to nothing, and sees no
row of any tenant.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum
from typing import Final

from storage.postgres.connection import StatementNames

SETTING: Final = "tidemark.tenants"
#: SET costs less than set_config() as a statement, which is planned: 2 µs against 19 for 20 tenants.
_NAME: Final = f"SET LOCAL {SETTING} = '{{}}'; "
NAMED_BY: Final = "of_tenant_named"
#: The table of tenants has no policy, so that a tenant is found by its name in the same round trip.
_NAME_BY_NAME: Final = (
    f"SELECT set_config('{SETTING}', coalesce((SELECT tenant_id::text FROM tenants"
    f" WHERE name = %({NAMED_BY})s), ''), true); "
)

Values = Mapping[str, object]


class Everyone(Enum):
    """All tenants: such work runs as the role of jobs."""

    EVERYONE = "everyone"


EVERYONE: Final = Everyone.EVERYONE
#: Tenants by their numbers, one by its name, or all. Without a name a command means all.
Tenants = Collection[int] | str | Everyone
NOBODY: Final[Tenants] = ()


def of_tenant(name: str | None) -> str | Everyone:
    """Return the tenants of a command: the one of that name, or all without a name."""
    return EVERYONE if name is None else name


def naming(
    tenants: Tenants, values: Values | None, names: StatementNames | None
) -> tuple[str, Values | None]:
    """Return the statement that names tenants for a transaction, and ``values`` with its own.

    Args:
        tenants: Whose rows the transaction is for. The role of jobs sees those of everyone without a name.
        values: The values of the statements that follow in the same round trip.
        names: How statements name the tables of a cell; None if they stay as they are.
    """
    if isinstance(tenants, str):
        by_name = _NAME_BY_NAME if names is None else names.text(_NAME_BY_NAME)
        return by_name, {**(values or {}), NAMED_BY: tenants}
    if isinstance(tenants, Everyone):
        return "", values
    return _NAME.format(",".join(map(str, map(int, tenants)))), values
