"""Partitions of days: which there are, what they hold, making those ahead, dropping old ones. No stores."""
