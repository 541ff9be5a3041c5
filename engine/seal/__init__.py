"""Sealing: personal data as bytes that only the keys of their tenant open. Pure."""
