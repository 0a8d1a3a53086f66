"""Studies: one command that trains and tests a grid of configurations, on Optuna."""
