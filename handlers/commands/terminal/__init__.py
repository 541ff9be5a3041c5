"""What commands read from and show on a terminal: tables, how far they are, times as options."""
