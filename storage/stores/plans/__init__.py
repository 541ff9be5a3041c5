"""The statements of serving, and by which indexes PostgreSQL finds what they ask for."""
