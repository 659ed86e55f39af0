"""Low-bit weights after pruning, with or without low-rank adapters for the errors of both steps."""
