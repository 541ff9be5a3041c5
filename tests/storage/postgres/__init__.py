"""Tests of connections and the schema."""
