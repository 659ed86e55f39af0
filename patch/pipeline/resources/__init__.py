"""Minutes, GPUs, memory and disk of jobs."""
