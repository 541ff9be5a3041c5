"""``make audit`` and ``make sbom``: what is known against code and dependencies, what is installed."""
