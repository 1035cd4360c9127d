"""Inference with a trained network: loading, evaluation on a data set, and classification of images."""
