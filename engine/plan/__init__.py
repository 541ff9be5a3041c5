"""What a batch means: rows under their locks in, rows to write and answers out; pure, no clock and no I/O."""
