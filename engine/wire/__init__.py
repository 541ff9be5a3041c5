"""The wire contract: messages, errors, values and their encodings. Pure; imports nothing of the engine."""
