"""Uploads in tests: clients of tus, the stack without a server, and files on disk."""
