"""Checks of a database: for doctor whether it is fit for a server, for verify whether its schema is whole."""
