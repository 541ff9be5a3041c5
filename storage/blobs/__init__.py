"""Bytes of uploads and files, in a directory or in a bucket; no rows of the database."""
