"""What the monitor reads besides minutes, and what it leaves for the next check."""
