"""What people ask of a deployment: conflicts, rejected items, export; no command line and no HTTP."""
