"""Puts the parts together: settings in, a running server or an open deployment out."""
