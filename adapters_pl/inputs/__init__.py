"""What comes from outside: errors, limits, ranges, patterns, names of classes, and secrets that stay secret."""
