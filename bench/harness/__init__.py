"""What every scenario stands on: services, servers, processes and the audit; no scenario lives here."""
