"""Several processes of one server: the supervisor, the start of a worker, a renewal with other settings."""
