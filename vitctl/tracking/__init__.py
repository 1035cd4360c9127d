"""Trackers: services and files that keep a run's figures, W&B and TensorBoard."""
