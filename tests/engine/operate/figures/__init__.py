"""Tests of the figures of tenants."""
