"""Figures of tenants: hours that are summed up, what is read of them, telemetry, and voice verifications."""
