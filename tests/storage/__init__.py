"""Tests of storage, on the real services."""
