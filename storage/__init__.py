"""The edge where data rests: PostgreSQL, Redis, files and buckets; nothing is served here."""
