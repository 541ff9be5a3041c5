"""What tests stand on: devices, servers, services, models; no test lives here."""
