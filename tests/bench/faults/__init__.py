"""Tests of the benchmark's search for faults."""
