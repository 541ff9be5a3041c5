"""The wire contract of a WebSocket as a connection: its handshake, and its end."""
