"""PostgreSQL and Redis of its own, where none is configured; nothing of what they hold is known here."""
