"""The socket of devices and its HTTP twins: frames, connections, messages; nothing of uploads."""
