"""What `serve` says of the roles of its database before its workers start."""

from __future__ import annotations

from structlog.testing import capture_logs

from compose.start import check_database_roles
from storage.embedded.servers import Services
from tests.harness.services import deployed


def test_start_one_role_for_all_is_logged_and_three_are_not(dsn: str) -> None:
    with capture_logs() as logs:
        check_database_roles(deployed(dsn, ""))
    assert logs == []
    with capture_logs() as logs:
        check_database_roles(Services(dsn, ""))
    ((event, level),) = [(one["event"], one["log_level"]) for one in logs]
    assert (event, level) == ("row_security_bypassed", "warning")
