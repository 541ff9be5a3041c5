-- Where sealed values stand, beside plain ones: no row is rewritten, and servers read both.
--
-- A json column has a sealed value as a string of base64, and a plain one as an object or a list. Of 211 bytes that
-- costs PostgreSQL 4.2 µs to write, against 2.9 plain and 5.9 in a bytea column, whose literals are hex; base64 takes a
-- third more room than bytea. A column of its own would also have to be read beside the plain one for ever. A text
-- column has a sealed value behind the character U+001E.
--
-- records.data_bytes is generated, and is the length of what is stored: of a sealed value it tells the length to 64
-- bytes, as the value itself does. Pages of the feed are bounded by it. What tenants hold counts plain bytes.
-- records.fields stays plain: names of fields, versions and times, no values.
-- upload_session: two files are the same if hash and name are; of sealed ones both are opened and compared by the server.
-- voice_verification_log: verification_id is a hash with a key of the tenant, so that a verification is still found.
-- quarantine.domain and record_id, and all other ids, stay plain.
COMMENT ON COLUMN records.data IS 'sealed in sealed domains';
COMMENT ON COLUMN records.last_data IS 'sealed in sealed domains';
COMMENT ON COLUMN records.attachments IS 'sealed in sealed domains, unless empty';
COMMENT ON COLUMN events.data IS 'sealed in sealed domains';
COMMENT ON COLUMN sync_idempotency_record.results IS
    'with data or errors: sealed with the hash of the request if an item is of a sealed or unknown domain';
COMMENT ON COLUMN sync_idempotency_record.request_sha256 IS
    '00 if it is sealed with the results, 01 and a keyed hash if these tell nothing';
COMMENT ON COLUMN conflict_resolution_log.server_data IS 'sealed in sealed domains';
COMMENT ON COLUMN conflict_resolution_log.client_data IS 'sealed in sealed domains';
COMMENT ON COLUMN conflict_resolution_log.client_changes IS 'a list; data of each element is sealed in sealed domains';
COMMENT ON COLUMN conflict_resolution_log.settled_sha256 IS 'sealed in sealed domains';
COMMENT ON COLUMN quarantine.item IS 'sealed in sealed and unknown domains';
COMMENT ON COLUMN upload_session.file_name IS 'sealed in sealed domains';
COMMENT ON COLUMN upload_session.metadata IS 'sealed in sealed domains, and of parts of an upload';
COMMENT ON COLUMN upload_session.wanted_sha256 IS 'sealed in sealed domains, and of parts of an upload';
COMMENT ON COLUMN upload_session.sha256 IS 'sealed in sealed domains';
COMMENT ON COLUMN voice_verification_log.verification_id IS 'a keyed hash if result is sealed, which has the id';
COMMENT ON COLUMN voice_verification_log.user_id IS 'null if result is sealed, which has the person';
COMMENT ON COLUMN voice_verification_log.result IS 'sealed if the domain voice is';
