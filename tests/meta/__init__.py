"""Tests of the documentation, the layout and the tests themselves."""
