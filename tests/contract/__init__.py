"""The wire contract, message by message, on a whole server."""
