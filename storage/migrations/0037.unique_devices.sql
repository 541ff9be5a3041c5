-- The user of the last token with which a device came in the hour.
ALTER TABLE sync_device_hours ADD COLUMN user_id text;

-- How many devices and users synced in a day, which is no sum of its hours. The hours of devices are kept for a week.
CREATE TABLE sync_analytics_day (
    tenant_id integer NOT NULL REFERENCES tenants,
    day date NOT NULL,
    unique_devices integer NOT NULL,
    unique_users integer NOT NULL,
    PRIMARY KEY (tenant_id, day)
);

-- What compression saved, of messages and bodies that devices sent and were sent.
ALTER TABLE sync_minutes ADD COLUMN bytes_saved_compression bigint NOT NULL DEFAULT 0;
