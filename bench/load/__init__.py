"""The load generator: devices that send at a rate, in a process of their own; no server is started here."""
