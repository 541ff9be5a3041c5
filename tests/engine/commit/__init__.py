"""Tests of group commit."""
