"""The processes on one database: the bus between them, and leases of jobs. No promise depends on the bus."""
