"""PATCH: learnable tile-level hybrid sparsity for language models (arXiv 2509.23410)."""

__version__ = "0.1.0"
