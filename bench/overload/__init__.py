"""More than a server can take, and whether it stays useful."""
