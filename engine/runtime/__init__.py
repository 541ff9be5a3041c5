"""What the whole engine stands on: settings, clocks, rates, turns, services; no message is known here."""
