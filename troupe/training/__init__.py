"""What one training run is made of: roles, rollouts, episodes, evaluation, the supervised loop."""
