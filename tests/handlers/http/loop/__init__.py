"""Tests of what is charged of the event loop."""
