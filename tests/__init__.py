"""The tests; their folders are those of the code, and those of what a whole system promises."""
