"""Rows of each subject read and written, as the ports of the engine ask it; no connection is made here."""
