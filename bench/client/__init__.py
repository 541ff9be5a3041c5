"""The reference device, and crews of it that have to agree; nothing that measures a server."""
