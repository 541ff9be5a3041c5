"""The drill of a recovery, on servers of its own, and what it measures: docs/recovery.md."""
