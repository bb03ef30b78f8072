"""A run on disk: its directory, checkpoints, metrics, events, and where they are stored."""
