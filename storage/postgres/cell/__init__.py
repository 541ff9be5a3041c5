"""The schema of a cell: how a DSN carries it, and how statements name the tables in it."""
