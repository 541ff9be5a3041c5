"""What devices read: pages of changes, cursors and live subscriptions. Nothing is written here."""
