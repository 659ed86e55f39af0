"""Text data: download, disjoint parts, and token sequences on disk."""
