DROP INDEX events_voice_received;

DROP TABLE voice_verification_log;

-- Biometric: personal data. Nothing of the voice itself is kept here.
CREATE TABLE voice_verification_log (
    tenant_id integer NOT NULL REFERENCES tenants,
    verification_id text COLLATE "C" NOT NULL,
    device_id text COLLATE "C" NOT NULL,
    user_id text,
    verified boolean NOT NULL,
    confidence_score double precision,
    quality_score double precision,
    processing_time_ms double precision,
    occurred_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, verification_id)
);

CREATE INDEX voice_verification_log_by_time ON voice_verification_log (tenant_id, occurred_at);
