"""Sync over WebSocket and over HTTP: frames, connections, messages; nothing of uploads."""
