"""What a run found, as text, JSON and a page; nothing is measured here."""
