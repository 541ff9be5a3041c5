"""Tests of what a tenant may hold and a batch may cost."""
