"""Clients as people have them: the reference device, the guide, libraries of others."""
