"""Implementation of `patch.utils` and `patch.fine_tune_mask`, the interface of the public code."""
