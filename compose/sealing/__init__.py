"""Keys of sealed data: where master keys come from, and what commands do to keys."""
