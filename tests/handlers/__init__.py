"""Tests of the edge, part by part."""
