"""Group commit: messages checked, queued and committed; what a change means is decided in the plan."""
