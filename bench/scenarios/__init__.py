"""The scenarios of one file each."""
