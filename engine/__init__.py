"""What sync means: no socket, no database, no file and no clock of its own."""
