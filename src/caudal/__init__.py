"""Caudal: one fleet from many clouds, for the model you train and the assistant you serve."""

__version__ = "0.1.0"
