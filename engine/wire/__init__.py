"""The wire contract: messages, errors, values and their encodings; pure, imports nothing of the engine."""
