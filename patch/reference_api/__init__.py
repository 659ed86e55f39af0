"""What stands behind `patch.utils` and `patch.fine_tune_mask`: the functions that scripts of the public code call."""
