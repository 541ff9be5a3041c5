"""Tests of probes, metrics and logs."""
