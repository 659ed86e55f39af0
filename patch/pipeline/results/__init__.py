"""Records of what was measured, the paper's numbers, and one tidy frame of both."""
