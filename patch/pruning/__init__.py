"""One-shot pruning methods, and pruning of a whole model by one of them."""
