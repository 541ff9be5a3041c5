"""What other tenants feel while one client takes all that it can get."""
