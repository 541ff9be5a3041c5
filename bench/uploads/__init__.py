"""Many files at once, and syncs beside them."""
