"""Which types of file are taken and what a file is by its first bytes; pure, no bytes are read here."""
