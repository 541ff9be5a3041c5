"""The processes on one database: the bus between them, and scheduled jobs. No promise depends on either."""
