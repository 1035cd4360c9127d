"""Inference with a trained network: loading, scoring on a data set, classifying images."""
