"""What people run today: the servers of other projects that the product is measured beside."""
