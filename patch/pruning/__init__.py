"""One-shot pruning methods, and pruning of a whole model."""
