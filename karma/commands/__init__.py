"""The command line, one file a command: each calls the package's own function and tells the user."""
