"""Records of measurements, the paper's numbers, and the tidy frame that joins them."""
