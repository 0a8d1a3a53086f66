"""Bases: directories, GGUF files, and those that have a name."""
