DROP TABLE device_telemetry;
DROP TABLE telemetry_names;
