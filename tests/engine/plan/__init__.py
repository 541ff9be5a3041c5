"""Tests of what a batch means."""
