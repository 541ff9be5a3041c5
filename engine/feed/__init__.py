"""What devices read of changes: pages, cursors and live subscriptions; nothing is written here."""
