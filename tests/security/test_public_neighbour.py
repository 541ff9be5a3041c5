"""A role that may make schemas, beside a deployment in ``public``."""

from __future__ import annotations

from tests.harness.in_process_server import Serve
from tests.harness.services import execute, rows, without_cells
from tests.harness.ws_device import put
from tests.security.catalogue import against
from tests.security.test_cell_neighbours import owner

pytestmark = [against("A01:2025", "V8.3"), without_cells("is about a deployment without one")]

_COLUMNS = (
    "SELECT string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum)"
    " FROM pg_attribute WHERE attrelid = 'public.records'::regclass AND attnum > 0 AND NOT attisdropped"
)


async def test_changes_of_a_deployment_do_not_go_into_a_schema_of_its_roles_name(
    serve: Serve, dsn: str
) -> None:
    """As docs/deployment.md makes its roles. PostgreSQL would look into that schema first."""
    ((database,),) = rows(dsn, "SELECT current_database()::text")
    execute(dsn, f'ALTER ROLE tidemark_serving IN DATABASE "{database}" SET search_path = public')
    device = await (await serve()).device()
    await device.push(put("before"))
    with owner(dsn, "south") as south:
        ((columns,),) = rows(dsn, _COLUMNS)
        execute(
            south,
            "CREATE SCHEMA tidemark_serving",
            "GRANT USAGE ON SCHEMA tidemark_serving TO PUBLIC",
            f"CREATE TABLE tidemark_serving.records ({columns})",
            "GRANT ALL ON tidemark_serving.records TO PUBLIC",
        )
        await device.push(put("after"))
        assert rows(south, "SELECT FROM tidemark_serving.records") == []
    assert rows(dsn, "SELECT id FROM public.records ORDER BY seq") == [("before",), ("after",)]
