"""Roles of PostgreSQL: what each may do, and the tenants that a transaction names (row-level security)."""
