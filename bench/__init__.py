"""A client that measures: it may use the engine, and storage to audit what was stored, but no handler."""
