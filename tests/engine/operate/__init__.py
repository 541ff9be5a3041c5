"""Tests of what people ask."""
