"""Runs of scheduled jobs, and the statements that they run over all tenants, a page at a time."""
