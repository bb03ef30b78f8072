"""Trained checkpoints behind Ray Serve."""
