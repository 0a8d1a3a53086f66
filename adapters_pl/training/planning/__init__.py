"""What would be trained, and whether it fits."""
