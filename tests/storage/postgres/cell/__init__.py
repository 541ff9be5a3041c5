"""Cells: their names in statements, and that they share nothing."""
