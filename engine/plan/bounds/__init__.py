"""Bounds of what a tenant holds and of what a batch costs, as pure values; no row is changed here."""
