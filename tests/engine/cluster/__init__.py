"""Tests of ``engine.cluster``."""
