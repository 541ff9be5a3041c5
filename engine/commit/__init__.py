"""Group commit: checks messages, queues them, commits them in batches. What a change means: engine.plan."""
