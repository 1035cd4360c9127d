"""Accuracy against wall time and operations, of vitctl, plain PyTorch loops and timm."""
