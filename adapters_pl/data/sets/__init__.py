"""The published sets, their suites and training mixtures, and files of one's own: declarations."""
