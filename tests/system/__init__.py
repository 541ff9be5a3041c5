"""Whole deployments, whose processes, hosts and disks fail."""
