"""Comparisons of devices and of optimizers."""
