"""The schema of a cell: made where it is missing, and refused if another cell's owner made it.

Each owner of a cell may make schemas, also one of the name that another cell is to have. The owner of a
schema drops the tables of others there, and makes tables and functions in their place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.operate.ports import RefusedError

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812  # a class that the driver spells so

#: Who owns a schema, and whether no other cell can have made it: the role itself, one that it is a member of,
#: the owner of the database or a superuser.
_OWNER: Final = (
    "SELECT o.rolname::text, n.nspowner IN (r.oid, d.datdba) OR o.rolsuper"
    " OR NOT r.rolsuper AND pg_has_role(n.nspowner, 'MEMBER')"
    " FROM pg_namespace AS n, pg_roles AS o, pg_roles AS r, pg_database AS d"
    " WHERE n.nspname = %s AND o.oid = n.nspowner AND r.rolname = current_user"
    " AND d.datname = current_database()"
)
#: Words that SQL does not take as the name of a schema.
_RESERVED: Final = "SELECT FROM pg_get_keywords() WHERE word = %s AND catcode IN ('R', 'T')"
#: Whether the role may make a schema, its name, and the statement that lets it.
_MAY_MAKE: Final = (
    "SELECT has_database_privilege(current_database(), 'CREATE'), current_user::text,"
    " format('GRANT CREATE ON DATABASE %I TO %I', current_database(), current_user)"
)


def lacking_right(cursor: Cursor, schema: str) -> tuple[str, str] | None:
    """Return what is wrong and its remedy if the role may not make the schema of a cell; else None."""
    cursor.execute(_MAY_MAKE)
    may_make, role, grant = cursor.fetchall()[0]
    return (
        None
        if may_make
        else (f"the role {role} may not make the schema {schema}", f"as a superuser: {grant}")
    )


def make_schema(cursor: Cursor, schema: str) -> None:
    """Make the schema of a cell where it is missing.

    Args:
        cursor: In a transaction that alone changes the schema.
        schema: The name.

    Raises:
        RefusedError: The schema belongs to a role of another cell, SQL does not take its name, or the role
            may make no schema.
    """
    # Citus distributes it last: some migrations fail in a distributed one. Elsewhere nobody reads this.
    cursor.execute("SET LOCAL citus.enable_schema_based_sharding = off")
    cursor.execute(_OWNER, (schema,))
    found = cursor.fetchall()
    if found:
        ((owner, is_trusted),) = found
        if not is_trusted:
            raise RefusedError(
                f"the schema {schema} belongs to the role {owner}, which could put its own tables and"
                " functions there: find out who made it and drop it, or choose another postgres.schema"
            )
        return
    cursor.execute(_RESERVED, (schema,))
    if cursor.fetchall():
        raise RefusedError(f"{schema} is a word of SQL and names no cell: choose another postgres.schema")
    if lacking := lacking_right(cursor, schema):
        raise RefusedError(": ".join(lacking))
    cursor.execute(f"CREATE SCHEMA {schema}")
