"""Wrapped keys of tenants, how far their re-sealing is, and where sealed values lie."""
