"""A run's directory, and the recipes that begin one."""
