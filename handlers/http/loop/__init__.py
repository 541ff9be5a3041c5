"""Charges the event loop's time to the device or address that caused it; no message is handled here."""
