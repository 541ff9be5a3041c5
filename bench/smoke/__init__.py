"""``run.py smoke``: two devices in a whole session against a running server, cleaned up after it."""
