"""Tests of downloads by range."""
