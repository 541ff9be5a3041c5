DROP INDEX upload_session_begun;
