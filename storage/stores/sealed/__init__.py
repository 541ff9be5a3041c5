"""Sealed values in columns: written sealed, read plain, and counted by their plain bytes."""
