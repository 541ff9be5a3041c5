"""The edge that clients and people meet: HTTP, WebSockets and the command line; no database library."""
