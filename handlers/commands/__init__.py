"""The command line, one file for each group of commands. A command gets the deployment it acts on."""
