"""The command line, one file for each group of commands; what they act on is handed to them."""
