"""Tests of what is kept in memory."""
