"""What operators see of a process: probes, metrics, logs; no message of a device is handled here."""
