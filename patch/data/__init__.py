"""Text data: download, disjoint splits, and token sequences on disk."""
