"""Servers of other projects that tests own: Redis, object storage, the hosts of a network."""
