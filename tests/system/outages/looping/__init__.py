"""A folder for PYTHONPATH, which makes a process loop on a signal."""
