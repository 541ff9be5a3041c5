"""What `serve` says of the roles of its database before its workers start."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from compose.start import check_database_roles
from handlers.commands.deployment import DeploymentError
from storage.embedded.servers import Services
from tests.harness.services import deployed, execute


def test_start_one_role_for_all_is_logged_and_three_are_not(dsn: str) -> None:
    with capture_logs() as logs:
        check_database_roles(deployed(dsn, ""))
    assert logs == []
    with capture_logs() as logs:
        check_database_roles(Services(dsn, ""))
    ((event, level),) = [(one["event"], one["log_level"]) for one in logs]
    assert (event, level) == ("row_security_bypassed", "warning")


@pytest.mark.parametrize(
    ("taken", "said"),
    [
        ("REVOKE SELECT ON devices FROM tidemark_serving", "of postgres.dsn may not use the table devices"),
        ("REVOKE INSERT ON alerts FROM tidemark_jobs", "of postgres.jobs_dsn may not use the table alerts"),
        ("DROP POLICY jobs ON devices", "jobs_dsn may not see the rows of the table devices"),
        ("ALTER POLICY jobs ON records TO tidemark_serving", "may not see the rows of the table records"),
    ],
)
def test_start_role_without_what_migrate_gives_is_refused(dsn: str, taken: str, said: str) -> None:
    execute(dsn, taken)
    with pytest.raises(DeploymentError, match=f"{said}: run `run.py migrate`"):
        check_database_roles(deployed(dsn, ""))
