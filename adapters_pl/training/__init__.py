"""The Lightning module, its checkpoints, and what keeps a training right."""
