-- A file that its device freed while a duplicate of it stands: 'lent'.
ALTER TABLE upload_session DROP CONSTRAINT upload_session_state_check;
ALTER TABLE upload_session ADD CONSTRAINT upload_session_state_check CHECK (
    state IN (
        'open', 'stored', 'attached', 'duplicate', 'lent', 'refused', 'cancelled', 'expired', 'joined', 'freed'
    )
);
