"""What is set for one transaction alone, so that no setting of the database or of a pooler matters."""

from __future__ import annotations

from typing import Final

from storage.postgres.pool import SERVER_MS, Statement

#: A stalled holder (stopped process, dead host) frees its tenants after this.
HOLD_MS: Final = 2000
#: Longer than a stalled holder can hold, so that waiting outlasts it.
LOCK_WAIT_MS: Final = 3000


def settings(synchronous_commit: str) -> Statement:
    """Make what is set for one transaction alone.

    Without enable_seqscan = off a plan made while a table was empty would read all of it for ever after;
    without force_generic_plan a lone sync is planned anew each time, since it looks cheaper than the average;
    a warning is what COMMIT says of a standby that has not confirmed.
    """
    return Statement(
        "SELECT "
        + ", ".join(
            f"set_config('{name}', '{value}', true)"
            for name, value in (
                ("idle_in_transaction_session_timeout", HOLD_MS),
                ("lock_timeout", LOCK_WAIT_MS),
                ("statement_timeout", SERVER_MS),
                ("synchronous_commit", synchronous_commit),
                ("enable_seqscan", "off"),
                ("plan_cache_mode", "force_generic_plan"),
                ("client_min_messages", "warning"),
            )
        )
    )


SETTINGS: Final = settings(synchronous_commit="on")
