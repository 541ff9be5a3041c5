-- Nothing wrote the table before. All that is biometric is one value, so that it can be sealed as a whole.
ALTER TABLE voice_verification_log
    DROP COLUMN verified,
    DROP COLUMN confidence_score,
    DROP COLUMN quality_score,
    DROP COLUMN processing_time_ms,
    ADD COLUMN result json NOT NULL;

-- The log is filled hour by hour. Events of other domains do not pay for it.
CREATE INDEX events_voice_received ON events (tenant_id, received_at) WHERE domain = 'voice';
