"""Judges the health of tenants: pure. Counts of a window go in, findings, score and status come out."""
