"""What processes on one database tell each other and who does what for all; nothing rests on being told."""
