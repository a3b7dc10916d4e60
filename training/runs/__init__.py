"""A run's folder: its settings, checkpoints and log, written and read."""
