"""Judges the health of tenants: pure. Facts of a window go in, findings, score and status come out."""
