"""The roles of a site, as the first step of a deployment makes them: none is a superuser."""

from __future__ import annotations

from typing import Final

from psycopg2.extensions import make_dsn

from bench.harness.clusters import PASSWORD, USER, Cluster, as_role
from storage.postgres.migrate import migrate
from storage.postgres.roles.grants import grant_roles
from tests.harness.services import execute

#: ``USER`` is the superuser of a cluster, which the page calls ``postgres``.
OWNER: Final = f"{USER}_owner"
_ROLES: Final = (OWNER, f"{USER}_serving", f"{USER}_jobs")


def plain_owner(cluster: Cluster) -> str:
    """Make the roles and the schema of a cluster's database.

    Returns:
        The owner's DSN.
    """
    execute(
        cluster.dsn,
        *(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'" for role in _ROLES),
        f"ALTER DATABASE {USER} OWNER TO {OWNER}",
        f"REVOKE ALL ON DATABASE {USER} FROM PUBLIC",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        # The server watches the disk of a database only then.
        f"GRANT pg_read_all_settings TO {USER}_serving, {USER}_jobs",
    )
    owner = str(make_dsn(cluster.dsn, user=OWNER))
    migrate(owner)
    grant_roles(owner, as_role(owner, "serving"), as_role(owner, "jobs"))
    return owner


def superuser_variables(*clusters: Cluster) -> dict[str, str]:
    """Return variables by which ``psql`` connects as the superuser, to the first cluster that is up."""
    hosts, ports = zip(*(cluster.address.split(":") for cluster in clusters), strict=True)
    return {"PGHOST": ",".join(hosts), "PGPORT": ",".join(ports), "PGUSER": USER, "PGPASSWORD": PASSWORD}
