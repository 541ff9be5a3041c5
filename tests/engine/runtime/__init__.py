"""Tests of settings, rates and turns."""
