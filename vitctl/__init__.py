"""Train Vision Transformers and their relatives on small pictures."""

__version__ = "0.1.0"
