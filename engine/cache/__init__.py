"""Tenants, devices and revocations in memory, read from the store and saved to it. Never the only copy."""
