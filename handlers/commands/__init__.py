"""The command line: a module or package for each group of commands, which get the deployment to act on."""
