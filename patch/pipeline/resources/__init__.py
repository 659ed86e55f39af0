"""Resource estimates of jobs: minutes, GPUs, memory and disk."""
