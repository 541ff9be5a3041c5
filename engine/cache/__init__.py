"""What is kept in memory of tenants and devices, with the store behind it; never the only copy."""
