"""Many conflicts under each policy, judged by what the contract says; nothing of the engine is used here."""
