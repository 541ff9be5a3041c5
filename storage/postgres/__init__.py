"""Connections to PostgreSQL and the care of its schema; no rows of devices or tenants are read here."""
