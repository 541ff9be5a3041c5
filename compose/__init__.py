"""Builds servers, workers and commands from settings; nothing imports it, and it decides nothing."""
