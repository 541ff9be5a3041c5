"""Tests of bytes of files."""
