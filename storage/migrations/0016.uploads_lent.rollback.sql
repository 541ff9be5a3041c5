UPDATE upload_session SET state = 'attached' WHERE state = 'lent';

ALTER TABLE upload_session DROP CONSTRAINT upload_session_state_check;

ALTER TABLE upload_session ADD CONSTRAINT upload_session_state_check CHECK (
    state IN ('open', 'stored', 'attached', 'duplicate', 'refused', 'cancelled', 'expired', 'joined', 'freed')
);
