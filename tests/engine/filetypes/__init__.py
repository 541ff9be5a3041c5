"""Tests of types of files."""
