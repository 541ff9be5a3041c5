"""Uploads from the first request to a file in its record, and their clean-up; no protocol and no storage."""
