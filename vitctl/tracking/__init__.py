"""Trackers that record a run's metrics: W&B and TensorBoard."""
