"""What every request meets: who asks, from where, with which headers; no route lives here."""
