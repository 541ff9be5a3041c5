"""Connections, transactions and the schema of PostgreSQL; no rows of devices or tenants are read here."""
