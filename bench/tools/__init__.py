"""Measurements that are run by hand, each with a command line of its own."""
