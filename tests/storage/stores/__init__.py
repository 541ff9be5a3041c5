"""Tests of rows of each subject."""
