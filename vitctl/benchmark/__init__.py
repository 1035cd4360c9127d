"""Comparisons of devices (``bench-device``) and of optimizers (``compare-optimizers``)."""
