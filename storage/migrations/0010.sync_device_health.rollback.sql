DROP TABLE sync_device_health;
