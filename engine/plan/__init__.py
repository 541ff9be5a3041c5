"""Plans a batch: rows under their locks in, rows to write and answers out. Pure: no clock and no I/O."""
