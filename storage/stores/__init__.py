"""One store a subject reads and writes its rows for servers and commands; no connection is made here."""
