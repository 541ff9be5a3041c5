"""Administration: its ports, the view of a conflict, retries and exports; no command line and no HTTP."""
