"""What doctor and verify look at: settings, this machine, services, and the address of devices."""
