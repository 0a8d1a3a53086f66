"""One file a subcommand, imported when it is called. Their names and arguments stand in ``cli/main.py``."""
