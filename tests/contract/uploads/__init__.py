"""The wire contract of uploads, request by request, on a whole server."""
